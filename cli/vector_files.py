"""Vectors on their way into a file: fetched range by range, so memory stays flat, and never seen half-written."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import pybase64

from cli.client import Client
from cli.errors import CliError, UsageError
from cli.job import InputFault, Job

RANGE_BYTES = 8 * 1024 * 1024  # of float32 vectors in one request
ENDINGS = (".npy", ".ndjson", ".jsonl", ".parquet", ".arrow")


class ResultLine(msgspec.Struct):
    index: int
    id: str | None = None
    embedding: str | None = None  # base64 of float32, little-endian
    error: InputFault | None = None


class VectorFile(ABC):
    """A file being written. Rows come in index order; a failed input is a row of its own."""

    def __init__(self, file: BinaryIO, *, rows: int, width: int) -> None:
        self._file = file
        self.rows = rows
        self.width = width

    @abstractmethod
    def fetch(self, client: Client, job_id: str, start: int, stop: int) -> None:
        """Append the rows of an index range."""

    def close(self) -> None:
        """Write what belongs at the end; by default nothing does. The file itself belongs to whoever opened it."""
        return


class NpyFile(VectorFile):
    """float32, n × width, loadable with numpy.load; a failed input is a row of NaN."""

    def __init__(self, file: BinaryIO, *, rows: int, width: int) -> None:
        super().__init__(file, rows=rows, width=width)
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, header)

    def fetch(self, client: Client, job_id: str, start: int, stop: int) -> None:
        reply = client.results(job_id, format="npy", start=start, stop=stop)
        part: npt.NDArray[np.float32] = np.load(io.BytesIO(reply.content), allow_pickle=False)
        if part.shape != (stop - start, self.width) or part.dtype != np.dtype("<f4"):
            raise _incomplete(job_id, start, stop, len(part))
        self._file.write(part.tobytes())


class NdjsonFile(VectorFile):
    """The server's result lines as they are: index, id, embedding or error."""

    def fetch(self, client: Client, job_id: str, start: int, stop: int) -> None:
        lines = client.results(job_id, format="ndjson", start=start, stop=stop).content
        if lines.count(b"\n") != stop - start:
            raise _incomplete(job_id, start, stop, lines.count(b"\n"))
        self._file.write(lines)


class ArrowFile(VectorFile):
    """Columns index, id, embedding (null where the input failed) and error, as Parquet or as an Arrow IPC file."""

    def __init__(self, file: BinaryIO, *, rows: int, width: int, format: str) -> None:
        super().__init__(file, rows=rows, width=width)
        import pyarrow as pa
        from pyarrow.ipc import new_file
        from pyarrow.parquet import ParquetWriter

        self._pa: Any = pa
        self._schema = pa.schema(
            [
                pa.field("index", pa.int64(), nullable=False),
                pa.field("id", pa.string()),
                pa.field("embedding", pa.list_(pa.float32(), width)),
                pa.field("error", pa.string()),
            ]
        )
        if format == ".parquet":
            # Dictionaries and floats do not go together: they would be built, found useless and thrown away.
            self._writer = ParquetWriter(file, self._schema, compression="zstd", use_dictionary=False)
        else:
            self._writer = new_file(file, self._schema)

    def fetch(self, client: Client, job_id: str, start: int, stop: int) -> None:
        reply = client.results(job_id, format="ndjson", start=start, stop=stop, base64=True)
        lines = msgspec.json.Decoder(ResultLine).decode_lines(reply.content)
        if [line.index for line in lines] != list(range(start, stop)):
            raise _incomplete(job_id, start, stop, len(lines))
        pa = self._pa
        blank = bytes(self.width * 4)
        vectors = b"".join(pybase64.b64decode(line.embedding) if line.embedding else blank for line in lines)
        if len(vectors) != len(lines) * len(blank):
            raise CliError(f"the results of {job_id} hold a vector that is not {self.width} wide")
        columns = [
            pa.array(range(start, stop), pa.int64()),
            pa.array([line.id for line in lines], pa.string()),
            pa.FixedSizeListArray.from_arrays(
                pa.array(np.frombuffer(vectors, dtype="<f4")),
                self.width,
                mask=pa.array([line.embedding is None for line in lines]),
            ),
            pa.array([f"{line.error.code}: {line.error.message}" if line.error else None for line in lines]).cast(
                pa.string()
            ),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before anything is spent. Raises UsageError."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path.name}: its ending does not tell the format", f"use one of {', '.join(ENDINGS)}")
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: {path.parent} is read-only for you")
    if path.suffix.lower() in (".parquet", ".arrow"):
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"{path.suffix} needs the package pyarrow", "install it, or write .npy or .ndjson"
            ) from error


def save_results(
    client: Client, job: Job, path: Path, on_rows: Callable[[int], None], *, range_bytes: int = RANGE_BYTES
) -> None:
    """Write every row of a finished job to `path`, which appears whole or not at all."""
    rows, step = job.counts.total or 0, _rows_per_request(job, range_bytes)
    with (
        replacing(path) as file,
        closing(_vector_file(file, path.suffix.lower(), rows, job.dimensions or 0)) as target,
    ):
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            target.fetch(client, job.id, start, stop)
            on_rows(stop)


def write_ndjson(client: Client, job: Job, stream: BinaryIO) -> None:
    """Write the rows that a job has so far, finished or not, as the server's lines."""
    rows, step = job.counts.total, _rows_per_request(job, RANGE_BYTES)
    if rows is None:
        raise CliError(f"{job.id}: its corpus is still being read", "ask again in a moment")
    for start in range(0, rows, step):
        stream.write(client.results(job.id, format="ndjson", start=start, stop=min(start + step, rows)).content)
    stream.flush()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when the block ends well and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _vector_file(file: BinaryIO, ending: str, rows: int, width: int) -> VectorFile:
    if ending == ".npy":
        return NpyFile(file, rows=rows, width=width)
    if ending in (".ndjson", ".jsonl"):
        return NdjsonFile(file, rows=rows, width=width)
    return ArrowFile(file, rows=rows, width=width, format=ending)


def _rows_per_request(job: Job, range_bytes: int) -> int:
    return max(1, range_bytes // max((job.dimensions or 0) * 4, 1))


def _incomplete(job_id: str, start: int, stop: int, got: int) -> CliError:
    return CliError(
        f"the server has {got} of the results {start} to {stop - 1} of {job_id}",
        f"`embedmill jobs show {job_id}` says why",
    )
