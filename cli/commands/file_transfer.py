"""Files on their way to the server and back, with a bar."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from cli.client.file_reader import FileRange
from cli.client.file_types import StoredFile
from cli.client.files_client import Files
from cli.errors import CliError, NotFound, UsageError
from cli.files.save import atomic_write
from cli.output.amounts import AmountProgress, RateMeter, amount_text, bytes_text
from cli.output.streams import data_stream

# A larger file is sent in parts of this size, so that a connection that breaks costs one of them.
PART_BYTES = 64 * 1024 * 1024
HASHED_BYTES = 1024 * 1024


def check_upload(path: Path, purpose: str) -> None:
    """Refuse what the server would refuse by its name alone, before it is sent. Raises UsageError."""
    if not path.exists():
        raise NotFound(f"{path} does not exist", "is its name right?")
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "name a plain file")
    if purpose == "batch" and path.suffix.lower() != ".jsonl":
        raise UsageError(f"{path.name}: a file for batches is named .jsonl", "rename it, or give --purpose user_data")


def upload_file(
    files: Files,
    path: Path,
    purpose: str,
    expires_after_s: int | None,
    progress: AmountProgress,
    *,
    part_bytes: int = PART_BYTES,
) -> StoredFile:
    """Send a file: a small one in one request, a larger one in parts. Raises CliError, UsageError."""
    check_upload(path, purpose)
    files.check_access()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        transfer = _Transfer(f"sending {path.name}", size, progress)
        if size <= part_bytes:
            return files.create(lambda: transfer.range_of(file.fileno(), 0, size), path.name, purpose, expires_after_s)
        return _upload_in_parts(files, file.fileno(), path, purpose, expires_after_s, transfer, part_bytes)


def _upload_in_parts(
    files: Files,
    handle: int,
    path: Path,
    purpose: str,
    expires_after_s: int | None,
    transfer: _Transfer,
    part_bytes: int,
) -> StoredFile:
    upload = files.create_upload(transfer.total, path.name, purpose, expires_after_s)
    digest = hashlib.md5(usedforsecurity=False)
    part_ids = []
    with ExitStack() as undo:
        undo.callback(_drop_upload, files, upload.id)
        for start in range(0, transfer.total, part_bytes):
            size = min(part_bytes, transfer.total - start)
            part_ids.append(files.add_part(upload.id, partial(transfer.range_of, handle, start, size)).id)
            for offset in range(start, start + size, HASHED_BYTES):
                digest.update(os.pread(handle, min(HASHED_BYTES, start + size - offset), offset))
        stored = files.complete(upload.id, part_ids, digest.hexdigest())
        undo.pop_all()
    return stored


def _drop_upload(files: Files, upload_id: str) -> None:
    with suppress(CliError):  # the server drops it by itself too, an hour later
        files.cancel_upload(upload_id)


def download_file(files: Files, file: StoredFile, target: Path | None, progress: AmountProgress) -> None:
    """Write a file to `target`, which appears whole or not at all; None: to stdout. Raises CliError."""
    transfer = _Transfer(f"fetching {file.filename or file.id}", file.bytes, progress)
    if target is None:
        stream = data_stream()
        files.fetch(file, transfer.counted(stream.write))
        stream.flush()
        return
    with atomic_write(target) as copy:
        files.fetch(file, transfer.counted(copy.write))


class _Transfer:
    """Shows how far a file has come. `total`: its bytes."""

    def __init__(self, what: str, total: int, progress: AmountProgress) -> None:
        self.total = total
        self._what = what
        self._progress = progress
        self._meter = RateMeter()
        self._done = 0

    def range_of(self, handle: int, start: int, size: int) -> FileRange:
        """A part of the file that is sent from its beginning, also where it was sent before."""
        self._done = start
        return FileRange(handle, start, size, self._add)

    def counted(self, write: Callable[[bytes], object]) -> Callable[[bytes], object]:
        """`write`, and the bytes are counted."""

        def write_and_count(data: bytes) -> None:
            write(data)
            self._add(data)

        return write_and_count

    def _add(self, data: bytes) -> None:
        self._done += len(data)
        facts = amount_text(self._done, self.total, self._meter.rate(self._done), size=bytes_text)
        self._progress.show(self._what, self._done / max(self.total, 1), facts)
