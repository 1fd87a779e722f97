"""The lines on stdin as they are, readable as often as needed: a file in its place, a pipe from a temporary copy."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from cli.errors import CliError, Failure, UsageError

PIECE_BYTES = 256 * 1024
# First bytes of what is no lines of UTF-8, what it is, and what to do.
SIGNATURES = (
    (b"\x1f\x8b", "packed with gzip", "unpack it: `zcat FILE | embedmill stream`"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it: `zstdcat FILE | embedmill stream`"),
    (b"PAR1", "a Parquet file", "`embedmill embed FILE` reads it"),
    (b"\xff\xfe", "UTF-16 or UTF-32", "write it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "write it as UTF-8"),
)


class LineInput:
    """The bytes of stdin from where it stands to its end. `size`: in bytes; `digest`: SHA-256 of all of them."""

    def __init__(self, stdin: BinaryIO, on_piece: Callable[[float], None] = lambda fraction: None) -> None:
        """Reads all of it once; `on_piece` gets the fraction read, from 0 to 1. Raises UsageError, CliError."""
        self._file, self._start = _rereadable(stdin)
        self.size = max(os.fstat(self._file.fileno()).st_size - self._start, 0)
        self._digest = hashlib.sha256()
        self.is_blank = True  # nothing but white space: no inputs
        self.fraction_read = 0.0
        for number, piece in enumerate(self._pieces()):
            if number == 0:
                _refuse_other_formats(piece)
            self._digest.update(piece)
            self.is_blank = self.is_blank and not piece.strip()
            on_piece(self.fraction_read)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the bytes."""
        return self._digest.digest()

    def pieces(self) -> Iterator[bytes]:
        """The bytes once more. Raises CliError at their end where they are no longer the same."""
        digest = hashlib.sha256()
        for piece in self._pieces():
            digest.update(piece)
            yield piece
        if digest.digest() != self.digest:  # before the end of a request's body, so that the server drops it
            fix = "run it again once nobody writes to it"
            raise CliError("stdin changed while it was read", fix, failure=Failure.FILE)

    def _pieces(self) -> Iterator[bytes]:
        offset, stop = self._start, self._start + self.size
        while offset < stop and (piece := os.pread(self._file.fileno(), min(PIECE_BYTES, stop - offset), offset)):
            offset += len(piece)
            self.fraction_read = (offset - self._start) / self.size
            yield piece


def _rereadable(source: BinaryIO) -> tuple[BinaryIO, int]:
    """A file that can be read again, and where its bytes begin."""
    try:
        handle = source.fileno()
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return source, os.lseek(handle, 0, os.SEEK_CUR)
    except (OSError, io.UnsupportedOperation):  # no file behind it
        pass
    if source.isatty():
        print("reading from the terminal; Ctrl-D ends it", file=sys.stderr)
    try:
        copy = tempfile.TemporaryFile(prefix="embedmill-")  # noqa: SIM115  # for the life of the command
        shutil.copyfileobj(source, copy)
        copy.flush()
    except OSError as error:
        raise CliError(
            f"stdin cannot be kept in a temporary file: {error.strerror or error}",
            "set TMPDIR to a folder with room for all of it",
            failure=Failure.MACHINE,
        ) from error
    return copy, 0


def _refuse_other_formats(start: bytes) -> None:
    """Raises UsageError for bytes that are no lines of UTF-8."""
    for magic, what, fix in SIGNATURES:
        if start.startswith(magic):
            raise UsageError(f"stdin is {what}", fix)
