"""A file, a pipe or stdin as a sequence of bytes: unpacked, readable as often as needed, and recognised by content."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from cli.errors import CliError, NotFound, UsageError
from cli.files.encoding import Encoding, find_encoding

STDIN = Path("-")
HEAD_BYTES = 64 * 1024
BUFFER_BYTES = 256 * 1024
COMPRESSED_STEP_BYTES = 4 * 1024  # of zstd: what so few unpack to fits into memory, whatever they hold
# Longer than any model's input: the server refuses lines above 4 MiB by default. Bounds our memory.
MAX_LINE_CHARS = 8 * 1024 * 1024
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSED_ENDINGS = {".gz": "gzip", ".zst": "zstd"}
PARQUET_MAGIC = b"PAR1\x15"  # the letters, and the first field of what always follows them
EXPORT = "export its texts as .csv, .jsonl or .parquet"
DECOMPRESS = "unpack it first"
# First bytes of files that are no text, what they are, and what to do.
SIGNATURES = (
    (b"PK\x03\x04", "a zip archive or a spreadsheet (.xlsx)", "save the sheet as CSV, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word document", "save it as CSV or as text"),
    (b"%PDF-", "a PDF document", EXPORT),
    (b"ARROW1\x00\x00", "an Arrow file", "write it as .parquet"),
    (b"Obj\x01", "an Avro file", EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", EXPORT),
    (b"\x93NUMPY", "a NumPy file", "it holds numbers, not texts"),
    (b"\x89HDF", "an HDF5 file", EXPORT),
    (b"BZh91AY&SY", "packed with bzip2", DECOMPRESS),
    (b"\xfd7zXZ\x00", "packed with xz", DECOMPRESS),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", DECOMPRESS),
)


class Source:
    """The bytes of a corpus. `notes`: facts for the user that the file's name does not show."""

    def __init__(self, path: Path, *, encoding: str | None = None) -> None:
        """Raises UsageError for what is no file, CliError for one that cannot be read."""
        self.path = path
        self.notes: list[str] = []
        self._spool: BinaryIO | None = None
        self._position: Callable[[], int] = lambda: 0
        if path == STDIN:
            self.name = "stdin"
            self._copy(sys.stdin.buffer if sys.stdin is not None else io.BytesIO())
        else:
            self.name = str(path)
            self._check_readable()
        self.size = max(self._spool.tell() if self._spool else path.stat().st_size, 1)
        self.compression = self._find_compression()
        with self.open() as file:
            self.head = read_upto(file, HEAD_BYTES)
        self.is_parquet = self.head.startswith(PARQUET_MAGIC)
        self._encoding = encoding
        self._detected: Encoding | None = None
        self._line_end = "\n"

    @property
    def suffix(self) -> str:
        """The ending that tells the format: of `texts.csv.gz` it is `.csv`."""
        inner = Path(self.path.stem) if self.path.suffix.lower() in COMPRESSED_ENDINGS else self.path
        return inner.suffix.lower()

    @property
    def encoding(self) -> Encoding:
        """Found at the first use. Raises UsageError when the bytes are no text."""
        if self._detected is None:
            self._detected = find_encoding(self.head, self._encoding, self.name)
            if self._detected.note:
                self.notes.append(self._detected.note)
            text = self.head.decode(self._detected.name, "replace").rstrip("\ufffd")
            if "\n" not in text and "\r" in text[:-1]:
                self._line_end = "\r"
                self.notes.append(f"{self.name}: its lines end with carriage returns")
        return self._detected

    @property
    def line_end(self) -> str:
        """A line feed; a carriage return where the beginning of the text has no line feed."""
        return self._line_end if self.encoding else "\n"

    def fraction_read(self) -> float:
        """How much of the bytes the latest `open` has read, from 0 to 1."""
        return min(self._position() / self.size, 1.0)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes from their beginning, unpacked. Raises CliError where they are not packed as they should be."""
        raw = self._open_raw()
        with raw:
            self._position = lambda: self.size if raw.closed else raw.tell()
            try:
                yield self._decompressed(raw)
            except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError, EOFError) as error:
                raise CliError(
                    f"{self.name} is not a whole {self.compression} file: {error}", "copy or download it again"
                ) from error

    def text_lines(self) -> Iterator[str]:
        """Lines with their ends; one above LONGEST_LINE characters comes in pieces.

        Raises UsageError naming the line that is not of the encoding, CliError where a NUL stands in the text.
        """
        encoding = self.encoding
        with self.open() as file:
            file.read(encoding.mark_bytes)
            text = io.TextIOWrapper(file, encoding.name, encoding.errors, newline=self._line_end)
            number = 0
            try:
                while line := text.readline(MAX_LINE_CHARS):
                    number += 1
                    if "\0" in line:
                        raise CliError(
                            f"{self.name}: line {number:,} holds a NUL, so the file is damaged or no text",
                            "remove it, or name the file's --encoding",
                        )
                    yield line
            except UnicodeDecodeError as error:
                raise encoding.decode_error(self.name, self._undecodable_line() or number + 1) from error
            finally:
                text.detach()

    def raw_lines(self) -> Iterator[bytes]:
        """Lines as UTF-8 bytes with their line feeds; bytes that are no UTF-8 come as they are."""
        encoding = self.encoding
        if encoding.name != "utf-8" or self._line_end != "\n":
            for line in self.text_lines():
                ended = line.endswith(self._line_end)
                body = line.removesuffix(self._line_end).replace("\n", " ")  # a space means the same between values
                yield body.encode("utf-8", "surrogateescape") + (b"\n" if ended else b"")
            return
        with self.open() as file:
            file.read(encoding.mark_bytes)
            while raw := file.readline(MAX_LINE_CHARS):
                yield raw

    def _undecodable_line(self) -> int | None:
        """The first line that is not of the encoding; None where lines cannot be told apart by bytes."""
        encoding = self.encoding
        if encoding.name.startswith(("utf-16", "utf-32")):
            return None
        with self.open() as file:
            number = 0
            while raw := file.readline(MAX_LINE_CHARS):
                number += 1
                try:
                    raw.decode(encoding.name)
                except UnicodeDecodeError:
                    return number
        return None

    def _check_readable(self) -> None:
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError as error:
            raise NotFound(f"{self.path} does not exist", "is its name right?") from error
        except PermissionError as error:
            raise UsageError(f"{self.path} cannot be read: you have no right to", "see its folder's mode") from error
        if stat.S_ISDIR(mode):
            raise UsageError(f"{self.path} is not a file, but a folder", "name the file of texts in it")
        if not os.access(self.path, os.R_OK):
            raise UsageError(f"{self.path} cannot be read: you have no right to", "see its mode and owner")
        if not stat.S_ISREG(mode):
            with self.path.open("rb") as pipe:
                self._copy(pipe)

    def _copy(self, pipe: BinaryIO) -> None:
        """Copy a pipe to a temporary file: it is checked before it is sent, and may be sent again."""
        if pipe.isatty():
            self.notes.append("reading from the terminal; Ctrl-D ends it")
            print(self.notes.pop(), file=sys.stderr)
        try:
            self._spool = cast("BinaryIO", tempfile.TemporaryFile(prefix="embedmill-"))  # noqa: SIM115  # for our life
            shutil.copyfileobj(pipe, self._spool)
            self._spool.flush()
        except OSError as error:
            raise CliError(
                f"{self.name} cannot be kept in a temporary file: {error.strerror or error}",
                "set TMPDIR to a folder with room for all of it",
            ) from error

    def _open_raw(self) -> BinaryIO:
        if self._spool is not None:
            return cast("BinaryIO", io.BufferedReader(_IndependentReader(self._spool.fileno()), BUFFER_BYTES))
        return self.path.open("rb", buffering=BUFFER_BYTES)

    def _find_compression(self) -> str:
        with self._open_raw() as raw:
            start = raw.read(4)
        detected = next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), "")
        expected = COMPRESSED_ENDINGS.get(self.path.suffix.lower(), "")
        if detected and not expected and self.path != STDIN:
            self.notes.append(f"{self.name} is packed with {detected}")
        return detected or expected

    def _decompressed(self, raw: BinaryIO) -> BinaryIO:
        if self.compression == "gzip":
            return cast("BinaryIO", io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER_BYTES))
        if self.compression == "zstd":
            return cast("BinaryIO", io.BufferedReader(_ZstdReader(raw), BUFFER_BYTES))
        return raw


def is_pipe(path: Path) -> bool:
    """True for stdin and for a file that can be read only once."""
    return path == STDIN or (path.exists() and not path.is_file() and not path.is_dir())


class _ZstdReader(io.RawIOBase):
    """What zstd frames unpack to. The library's own reader takes the end of half a frame for the end of the file."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._unread = b""  # of the compressed bytes
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            compressed = self._unread or self._raw.read(COMPRESSED_STEP_BYTES)
            if not compressed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends inside a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._unpacked = memoryview(self._frame.decompress(compressed))
            self._unread = self._frame.unused_data if self._frame.eof else b""
        count = min(len(buffer), len(self._unpacked))
        buffer[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count


class _IndependentReader(io.RawIOBase):
    """An open file from its beginning, with a position of its own."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._handle, len(buffer), self._offset)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset}.get(whence)
        self._offset = (os.fstat(self._handle).st_size if base is None else base) + offset
        return self._offset

    def tell(self) -> int:
        return self._offset


def read_upto(file: BinaryIO, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the file only."""
    parts: list[bytes] = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def refuse_other_formats(source: Source) -> None:
    """Raises UsageError for a file whose first bytes say that it is no text at all."""
    for magic, what, fix in SIGNATURES:
        if source.head.startswith(magic):
            raise UsageError(f"{source.name} is {what}", fix)
    if source.head[257:262] == b"ustar":
        raise UsageError(f"{source.name} is a tar archive", DECOMPRESS)
    if source.head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise UsageError(
            f"{source.name} is an HTML page", "a download may have failed; --format txt embeds it all the same"
        )
