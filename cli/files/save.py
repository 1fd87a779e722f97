"""The results of a job on their way into a file, which is seen whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from cli.client.api_client import Client
from cli.client.types import Job, resume_hint, status_text
from cli.errors import CliError, ExitCode, UsageError
from cli.files.vector_files import HAS_VECTOR, open_vector_file

RANGE_BYTES = 8 * 1024 * 1024  # of float32 vectors in one request
ENDINGS = (".npy", ".ndjson", ".jsonl", ".parquet", ".arrow")
WITH_VECTORS = ("completed", "completed_with_errors")


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before anything is spent. Raises UsageError."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path.name}: its ending does not tell the format", f"use one of {', '.join(ENDINGS)}")
    check_writable(path)
    if path.suffix.lower() in (".parquet", ".arrow"):
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"{path.suffix} needs the package pyarrow", "`pip install pyarrow`, or write .npy or .ndjson"
            ) from error


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written. Raises UsageError."""
    path = path.resolve()  # a link stays, and its target is written
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} cannot be written: it is no plain file", "name a file, or --out - for stdout")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: {path.parent} is read-only for you")


def check_complete(job: Job, *, partial: bool) -> None:
    """Refuse the results of a job that has not given all its inputs an outcome, unless a part of them is enough.

    Raises CliError.
    """
    if job.counts.total is None and job.finished:
        reasons = "; ".join(group.message for group in job.errors if not group.count)
        raise CliError(f"{job.id} is {status_text(job)}, before its corpus had been read", reasons or "send it again")
    if job.counts.total is None:
        raise CliError(f"{job.id}: its corpus is still being read", "ask again in a moment")
    if partial or job.status in WITH_VECTORS:
        return
    if job.status == "paused":
        first = f"{resume_hint(job)}, and "
    else:
        first = "" if job.finished else f"`embedmill jobs wait {job.id}` first, or "
    raise CliError(
        f"{job.id} is {status_text(job)}: {job.counts.completed:,} of its {job.counts.total:,} inputs have a vector",
        f"{first}--partial fetches those",
    )


def missing_rows_text(job: Job, missing: int) -> str:
    """The message about rows without a vector, and where their errors are listed."""
    rows = job.counts.total or 0
    errors_hint = f": `embedmill jobs errors {job.id}` says why" if job.counts.failed else ""
    state = "" if job.finished else f"; the job is {job.status.replace('_', ' ')}"
    return f"{missing:,} of {rows:,} rows have no vector{state}{errors_hint}"


def exit_code(missing: int) -> ExitCode:
    """INPUT_ERRORS when `missing` rows have no vector, else DONE."""
    return ExitCode.INPUT_ERRORS if missing else ExitCode.DONE


def save_results(
    client: Client,
    job: Job,
    path: Path,
    on_rows: Callable[[int], None],
    *,
    partial: bool = False,
    range_bytes: int = RANGE_BYTES,
) -> int:
    """Write every row of a job to `path`, which appears whole or not at all. Returns how many have no vector."""
    rows, step = job.counts.total or 0, _rows_per_request(job, range_bytes)
    with (
        atomic_write(path) as file,
        closing(open_vector_file(file, path.suffix.lower(), rows, job.dimensions or 0, partial=partial)) as target,
    ):
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            target.fetch(client, job.id, start, stop)
            on_rows(stop)
    return rows - target.vectors


def write_ndjson(client: Client, job: Job, stream: BinaryIO) -> int:
    """Write the rows that a job has so far as the server's lines. Returns how many of all have no vector."""
    rows, step = job.counts.total or 0, _rows_per_request(job, RANGE_BYTES)
    written = vectors = 0
    tail = b""

    def write(chunk: bytes) -> None:
        nonlocal written, vectors, tail
        written += len(chunk)
        vectors += (tail + chunk).count(HAS_VECTOR)
        tail = (tail + chunk)[-len(HAS_VECTOR) + 1 :]
        stream.write(chunk)

    def begin() -> Callable[[bytes], None]:
        if written > written_before:  # bytes written to a pipe cannot be taken back
            raise CliError(
                f"the results broke off at {start:,} of {rows:,}", "use --out, which begins such a part again"
            )
        return write

    for start in range(0, rows, step):
        written_before = written
        client.copy_results(job.id, start, min(start + step, rows), begin, format="ndjson")
    stream.flush()
    return rows - vectors


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when the block ends well and vanishes when it does not.

    Where `path` is a link, that is the place it points to.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows_per_request(job: Job, range_bytes: int) -> int:
    return max(1, range_bytes // max((job.dimensions or 0) * 4, 1))
