"""Formats in: a streamed corpus becomes inputs, ids and per-line errors, a chunk of bytes at a time, in flat memory.

A line is an index. A bad line is that index's error, never a shift of those behind it. Lines end at the byte `\\n`
alone: U+2028 and its kin are text.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from models.embedding import Input, InputError
from models.errors import InvalidInput, PayloadTooLarge

BOM = b"\xef\xbb\xbf"
GZIP_STEP_BYTES = 256 * 1024


class TextLine(msgspec.Struct):
    """An input with the caller's own id. Other fields of the line are the caller's business and are left alone."""

    text: str | list[int]
    id: str | int | None = None


_LINE = msgspec.json.Decoder(str | list[int] | TextLine)


@dataclass(slots=True)
class Lines:
    """Neighbouring lines, parsed: `inputs[i]` is None where `errors` has the reason at `i`."""

    inputs: list[Input | None] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    errors: dict[int, InputError] = field(default_factory=dict)

    def add(self, item: Input, caller_id: str | None = None) -> None:
        self.inputs.append(item)
        self.ids.append(caller_id)

    def refuse(self, error: InputError, caller_id: str | None = None) -> None:
        self.errors[len(self.inputs)] = error
        self.inputs.append(None)
        self.ids.append(caller_id)


def parse_json_line(line: bytes, lines: Lines) -> None:
    """One line of ndjson: a JSON string, a token array, or an object with `text`."""
    try:
        value = _LINE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _refuse(line, lines)
    else:
        add_value(value, lines)


def _refuse(line: bytes, lines: Lines) -> None:
    """Say what is wrong with a line: no JSON, or good JSON that is no input, which may still tell the caller's id."""
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        blank = not line.strip()
        lines.refuse(InputError("invalid_json", "the line is empty" if blank else "the line is not valid JSON"))
        return
    given = value.get("id") if isinstance(value, dict) else None
    lines.refuse(
        InputError("invalid_input", "a line must be a JSON string, an array of token ids, or an object with a text"),
        str(given) if isinstance(given, str | int) else None,
    )


def add_value(value: str | list[int] | TextLine, lines: Lines) -> None:
    if isinstance(value, TextLine):
        caller_id = None if value.id is None else str(value.id)
        lines.add(value.text, caller_id)
    else:
        lines.add(value)


def parse_text_line(line: bytes, lines: Lines) -> None:
    """One line of plain text; a carriage return before the line feed belongs to the line's end."""
    try:
        lines.add(line.removesuffix(b"\r").decode("utf-8"))
    except UnicodeDecodeError:
        lines.refuse(InputError("invalid_input", "the line is not valid UTF-8"))


PARSERS: dict[str, Callable[[bytes, Lines], None]] = {
    "application/x-ndjson": parse_json_line,
    "application/ndjson": parse_json_line,
    "application/jsonl": parse_json_line,
    "application/x-jsonlines": parse_json_line,
    "text/plain": parse_text_line,
}


class LineReader:
    """Cuts a byte stream into lines and parses them. Holds one line and the current chunk, nothing else."""

    def __init__(self, parse: Callable[[bytes, Lines], None], *, max_line_bytes: int) -> None:
        self._parse = parse
        self._max_line_bytes = max_line_bytes
        self._rest = bytearray()
        self._skipping = False  # inside a line that is too long already
        self._first = True

    def feed(self, chunk: bytes) -> Lines:
        """The lines that this chunk completes."""
        lines = Lines()
        if self._first:
            chunk = bytes(self._rest) + chunk
            # Only the stream's own first bytes can be a BOM, however they were cut into chunks.
            self._first = len(chunk) < len(BOM) and BOM.startswith(chunk)
            self._rest[:] = chunk if self._first else b""
            chunk = b"" if self._first else chunk.removeprefix(BOM)
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._complete(chunk[start:end], lines)
            start = end + 1
        self._keep(chunk[start:], lines)
        return lines

    def finish(self) -> Lines:
        """The last line, where the stream did not end with a line feed."""
        lines = Lines()
        if self._rest:
            self._complete(b"", lines)
        self._skipping = False
        return lines

    def _keep(self, piece: bytes, lines: Lines) -> None:
        if self._skipping or not piece:
            return
        self._rest += piece
        if len(self._rest) > self._max_line_bytes:
            self._too_long(lines)
            self._skipping = True

    def _complete(self, piece: bytes, lines: Lines) -> None:
        if self._skipping:
            self._skipping = False
            return
        if self._rest:
            piece = bytes(self._rest) + piece
            self._rest.clear()
        if len(piece) > self._max_line_bytes:
            self._too_long(lines)
        else:
            self._parse(piece, lines)

    def _too_long(self, lines: Lines) -> None:
        self._rest.clear()
        lines.refuse(InputError("input_too_long", f"the line is longer than {self._max_line_bytes} bytes"))


class Gunzip:
    """Inflates a gzip stream in bounded steps, so that a bomb costs time, never memory. Members may follow members."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._started = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Raises InvalidInput when the stream is not gzip."""
        try:
            while chunk:
                if self._inflate.eof:
                    self._inflate = zlib.decompressobj(wbits=31)
                self._started = True
                piece = self._inflate.decompress(chunk, GZIP_STEP_BYTES)
                chunk = self._inflate.unconsumed_tail or self._inflate.unused_data
                if piece:
                    yield piece
        except zlib.error as error:
            raise InvalidInput("the body is not a valid gzip stream", code="invalid_encoding") from error

    def finish(self) -> None:
        """Raises InvalidInput when the stream ended in the middle of a member."""
        if self._started and not self._inflate.eof:
            raise InvalidInput("the gzip stream is cut off before its end", code="invalid_encoding")


class Whole:
    """The identity encoding, in the shape of Gunzip."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk

    def finish(self) -> None:
        pass


class ByteMeter:
    """Counts decoded bytes. Raises PayloadTooLarge past the limit."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._limit = limit

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise PayloadTooLarge(f"the corpus is larger than {self._limit} bytes")
