"""The formats that vectors are written in: rows come in index order, range by range, so that memory stays flat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pybase64

from cli.client.api_client import Client
from cli.client.types import InputFault
from cli.errors import CliError

# In a result line, between the id and the numbers: no id holds it, for quotes within a JSON string are escaped.
HAS_VECTOR = b',"embedding":'


class ResultLine(msgspec.Struct):
    """One line of a job's results."""

    index: int
    id: str | None = None
    embedding: str | None = None  # base64 of float32, little-endian
    error: InputFault | None = None
    truncated: bool = False  # the text was not embedded whole


class VectorFile(ABC):
    """A file being written. Rows come in index order; a failed input is a row of its own.

    `vectors` counts the rows that have one. `partial`: inputs without an outcome may be missing.
    """

    def __init__(self, file: BinaryIO, *, rows: int, width: int, partial: bool = False) -> None:
        self._file = file
        self.rows = rows
        self.width = width
        self.partial = partial
        self.vectors = 0

    @abstractmethod
    def fetch(self, client: Client, job_id: str, start: int, stop: int) -> None:
        """Append the rows of an index range."""

    def _restart(self, offset: int) -> None:
        """Drop the bytes of a broken download."""
        self._file.seek(offset)
        self._file.truncate()

    def close(self) -> None:
        """Write the end of the format, if it has one. The caller closes the file itself."""
        return


class NpyFile(VectorFile):
    """float32, n × width, loadable with numpy.load; a failed input is a row of NaN."""

    def __init__(self, file: BinaryIO, *, rows: int, width: int, partial: bool = False) -> None:
        super().__init__(file, rows=rows, width=width, partial=partial)
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, header)

    def fetch(self, client: Client, job_id: str, start: int, stop: int) -> None:
        """As `VectorFile.fetch`. Raises CliError when the server sends fewer rows."""
        offset = self._file.tell()
        head = bytearray()
        in_head = True

        def begin() -> Callable[[bytes], None]:
            nonlocal in_head
            head.clear()
            in_head = True
            self._restart(offset)
            return write

        def write(chunk: bytes) -> None:
            nonlocal in_head
            if not in_head:
                self._file.write(chunk)
                return
            head.extend(chunk)  # the part's own header; ours is written already
            if len(head) >= 10 and len(head) >= (size := 10 + int.from_bytes(head[8:10], "little")):
                self._file.write(head[size:])
                in_head = False

        client.copy_results(job_id, start, stop, begin, format="npy")
        rows, extra_bytes = divmod(self._file.tell() - offset, self.width * 4)
        if in_head or b"'<f4'" not in head[:128] or extra_bytes or rows != stop - start:
            raise incomplete(job_id, start, stop, rows)
        self._file.seek(offset)
        part = np.frombuffer(self._file.read(rows * self.width * 4), dtype="<f4").reshape(rows, self.width)
        self.vectors += int(np.count_nonzero(~np.isnan(part[:, 0])))


class NdjsonFile(VectorFile):
    """The server's result lines as they are: index, id, embedding or error."""

    def fetch(self, client: Client, job_id: str, start: int, stop: int) -> None:
        """As `VectorFile.fetch`. Raises CliError when the server sends fewer lines."""
        offset, lines = self._file.tell(), 0

        def begin() -> Callable[[bytes], None]:
            nonlocal lines
            lines = 0
            self._restart(offset)
            return write

        def write(chunk: bytes) -> None:
            nonlocal lines
            lines += chunk.count(b"\n")
            self._file.write(chunk)

        client.copy_results(job_id, start, stop, begin, format="ndjson")
        if lines != stop - start and not self.partial:
            raise incomplete(job_id, start, stop, lines)
        self._file.seek(offset)
        self.vectors += sum(HAS_VECTOR in line for line in self._file)


class ArrowFile(VectorFile):
    """Columns index, id, embedding (null where the input failed), error and truncated, as Parquet or Arrow."""

    def __init__(self, file: BinaryIO, *, rows: int, width: int, format: str, partial: bool = False) -> None:
        super().__init__(file, rows=rows, width=width, partial=partial)
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
                pa.field("truncated", pa.bool_(), nullable=False),
            ]
        )
        if format == ".parquet":
            # Floats of vectors do not pack, and no two are alike: trying costs more time than everything else here.
            compression = {
                "index": "zstd",
                "id": "zstd",
                "error": "zstd",
                "truncated": "zstd",
                "embedding.list.element": "none",
            }
            self._writer = ParquetWriter(file, self._schema, compression=compression, use_dictionary=["error"])
        else:
            self._writer = new_file(file, self._schema)

    def fetch(self, client: Client, job_id: str, start: int, stop: int) -> None:
        """As `VectorFile.fetch`. Raises CliError when rows are missing or a vector has another width."""
        lines = msgspec.json.Decoder(ResultLine).decode_lines(client.base64_results(job_id, start, stop))
        if self.partial:
            line_by_index = {line.index: line for line in lines}
            lines = [line_by_index.get(index) or ResultLine(index=index) for index in range(start, stop)]
        if [line.index for line in lines] != list(range(start, stop)):
            raise incomplete(job_id, start, stop, len(lines))
        self.vectors += sum(line.embedding is not None for line in lines)
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
            pa.array([line.truncated for line in lines], pa.bool_()),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def open_vector_file(file: BinaryIO, ending: str, rows: int, width: int, *, partial: bool = False) -> VectorFile:
    """The format that the file's ending asks for."""
    if ending == ".npy":
        return NpyFile(file, rows=rows, width=width, partial=partial)
    if ending in (".ndjson", ".jsonl"):
        return NdjsonFile(file, rows=rows, width=width, partial=partial)
    return ArrowFile(file, rows=rows, width=width, format=ending, partial=partial)


def incomplete(job_id: str, start: int, stop: int, row_count: int) -> CliError:
    """The error for a range of which the server has only `got` rows."""
    return CliError(
        f"the server has {row_count} of the results {start} to {stop - 1} of {job_id}",
        f"`embedmill jobs show {job_id}` says why",
    )
