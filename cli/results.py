"""The results of a job on their way into a file, which is seen whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from cli.client import Client
from cli.errors import CliError, UsageError
from cli.job import Job
from cli.vector_files import open_vector_file

RANGE_BYTES = 8 * 1024 * 1024  # of float32 vectors in one request
ENDINGS = (".npy", ".ndjson", ".jsonl", ".parquet", ".arrow")


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
        closing(open_vector_file(file, path.suffix.lower(), rows, job.dimensions or 0)) as target,
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
    written = 0

    def write(chunk: bytes) -> None:
        nonlocal written
        written += len(chunk)
        stream.write(chunk)

    def begin() -> Callable[[bytes], None]:
        if written > written_before:  # what a pipe has swallowed cannot be taken back
            raise CliError(
                f"the results broke off at {start:,} of {rows:,}", "use --out, which begins such a part again"
            )
        return write

    for start in range(0, rows, step):
        written_before = written
        client.copy_results(job.id, start, min(start + step, rows), begin, format="ndjson")
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


def _rows_per_request(job: Job, range_bytes: int) -> int:
    return max(1, range_bytes // max((job.dimensions or 0) * 4, 1))
