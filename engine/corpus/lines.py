"""Parses a streamed corpus into inputs, ids and errors of lines, chunk by chunk, in constant memory.

Each line has an index. A bad line is an error at its index, and does not shift the lines behind it. Lines end at the
byte `\\n` only: U+2028 and the like are text. Blank lines at the end of a corpus are no inputs; a run of blank lines
before other lines is one entry.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.corpus import json_spans
from engine.corpus.double_keys import line_double_key
from models.embedding import Input, InputError
from models.errors import InvalidInput, PayloadTooLarge

BOM = b"\xef\xbb\xbf"
GZIP_STEP_BYTES = 64 * 1024
MAX_ID_BYTES = 512
# A bad line up to this length is decoded again, to explain the error; in a longer one only the members are located.
EXPLAINED_BYTES = 4096
# Zeros compress to a thousandth. A body below this size is never refused for its ratio: it costs next to nothing.
RATIO_FREE_BYTES = 16 * 1024 * 1024


class TextLine(msgspec.Struct):
    """An input with the caller's own id. Other fields of the line are ignored."""

    text: str | list[int]
    id: str | int | float | None = None


class _Members(msgspec.Struct):
    text: msgspec.Raw = msgspec.Raw(b"")
    id: msgspec.Raw = msgspec.Raw(b"null")


_LINE = msgspec.json.Decoder(str | list[int] | TextLine)
_MEMBERS = msgspec.json.Decoder(_Members)
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


@dataclass(slots=True)
class ParsedRecords:
    """Parsed neighbouring lines: `inputs[i]` is None where `errors[i]` has the reason.

    An entry in `repeats` stands for so many neighbouring lines with the same error.
    """

    inputs: list[Input | None] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    errors: dict[int, InputError] = field(default_factory=dict)
    repeats: dict[int, int] = field(default_factory=dict)

    def add(self, item: Input, caller_id: str | None = None) -> None:
        """Append an input."""
        self.inputs.append(item)
        self.ids.append(caller_id)

    def append_error(self, error: InputError, caller_id: str | None = None, *, count: int = 1) -> None:
        """Append an error in the place of an input, or of `count` of them."""
        if count > 1:
            self.repeats[len(self.inputs)] = count
        self.errors[len(self.inputs)] = error
        self.inputs.append(None)
        self.ids.append(caller_id)


def parse_json_line(line: bytes, lines: ParsedRecords) -> None:
    """One line of ndjson: a JSON string, a token array, or an object with `text`."""
    if len(line) > EXPLAINED_BYTES and _has_endless_number(line):
        lines.append_error(InputError("invalid_input", "the line holds a number of more than a thousand digits"))
        return
    try:
        value = _LINE.decode(line)
    except _NOT_JSON:
        error, caller_id = explain_line(line)
        lines.append_error(error, caller_id)
    else:
        if isinstance(value, TextLine) and (key := line_double_key(line, value)) is not None:
            error = InputError("invalid_input", f"the line has the key '{key}' twice: send it once")
            lines.append_error(error, None if key == "id" else _id_in(line))
        else:
            append_record(value, lines)


def _has_endless_number(line: bytes) -> bool:
    """True where an id or a token has more digits than can be read in a moment.

    Millions of them would hold the interpreter's lock for a good part of a second. In a string the quotes around a name
    are escaped, so that a text does not match.
    """
    if _ENDLESS_ID.search(line):
        return True
    tokens = _TOKENS.search(line)
    return tokens is not None and _ENDLESS_TOKEN.search(line, tokens.start()) is not None


_ENDLESS_ID = re.compile(rb'"id"\s*:\s*-?[\d.]{1000}')
_TOKENS = re.compile(rb'\A\s*\[|"text"\s*:\s*\[')
_ENDLESS_TOKEN = re.compile(rb"[\[,]\s*-?\d{1000}")


def explain_line(line: bytes, what: str = "line") -> tuple[InputError, str | None]:
    """What is wrong with a line, or an item, that is no input; and the caller's id, where it can be read."""
    try:
        line.decode("utf-8")  # which is not asked of what is passed over
        msgspec.json.decode(line, type=msgspec.Raw)
        if line.lstrip()[:1] != b"{":
            return _no_input(what), None
        found = _MEMBERS.decode(line)
    except _NOT_JSON:
        return InputError("invalid_json", _why_not_json(line, what)), _id_in(line)
    try:
        caller_id = id_text(msgspec.json.decode(found.id, type=str | int | float | None))
    except (ValueError, *_NOT_JSON):
        wrong = f"the id must be a string or a number, of {MAX_ID_BYTES} bytes at the most"
        return InputError("invalid_input", wrong), None
    return InputError("invalid_input", _KINDS.get(bytes(found.text)[:1], _NO_TEXT)), caller_id


_NO_TEXT = "the text must be a string or an array of token ids"
_KINDS = {b"": "the object has no text", b"n": "the text is null", b"{": "the text is an object: send a string"}
_KINDS |= dict.fromkeys((b"t", b"f"), "the text is true or false: send a string")
_KINDS |= {b"%d" % digit: "the text is a number: send a string" for digit in range(10)} | {
    b"-": "the text is a number: send a string"
}


def _no_input(what: str) -> InputError:
    words = f"{'an' if what[0] in 'aeiou' else 'a'} {what} must be a JSON string, an array of token ids, or an object"
    return InputError("invalid_input", f"{words} with a text")


def _why_not_json(line: bytes, what: str) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "the text is not valid UTF-8"
    if _SURROGATE.search(line) and _loosely(line) is not None:
        return f"the {what} holds half of a surrogate pair: one half of an emoji or a rare character is missing"
    if _loosely(line) is not None:
        return f"the {what} is not valid JSON: NaN and Infinity are no JSON numbers"
    return f"the {what} is not valid JSON"


def _loosely(line: bytes) -> Any:
    """The value as Python reads it, which takes NaN and halves of surrogate pairs; None where it is none, or long."""
    if len(line) > EXPLAINED_BYTES:
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _id_in(line: bytes) -> str | None:
    """The id of an object that is not quite JSON: with NaN in it, half a surrogate pair, a byte that is no UTF-8."""
    if line.lstrip()[:1] != b"{" or b'"id"' not in line:
        return None
    try:
        if len(line) <= EXPLAINED_BYTES:
            value = json.loads(line.decode("utf-8", "replace"))
            return id_text(value.get("id"))
        start, stop = json_spans.members(line)[b'"id"']
        return id_text(msgspec.json.decode(line[start:stop], type=str | int | float | None))
    except (ValueError, KeyError, *_NOT_JSON):
        return None


def id_text(value: object) -> str | None:
    """A caller's id as it is kept. Raises ValueError for one that is none, or too long."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("not an id")
    text = value if isinstance(value, str) else repr(value)
    if len(text.encode()) > MAX_ID_BYTES:  # half a surrogate pair is a ValueError too
        raise ValueError("too long")
    return text


LONG_ID = InputError("invalid_input", f"the id is longer than {MAX_ID_BYTES} bytes")


def append_record(value: str | list[int] | TextLine, lines: ParsedRecords) -> None:
    """Append the input of a decoded line, or its error."""
    if isinstance(value, TextLine):
        try:
            caller_id = id_text(value.id)
        except ValueError:
            lines.append_error(LONG_ID)
        else:
            lines.add(value.text, caller_id)
    else:
        lines.add(value)


def parse_text_line(line: bytes, lines: ParsedRecords) -> None:
    """One line of plain text; a carriage return before the line feed belongs to the line's end."""
    if b"\0" in line:  # UTF-16 is full of them, and would pass for UTF-8 with a NUL after each letter
        lines.append_error(InputError("invalid_input", "the line holds a NUL: it is no text, or not UTF-8. Send UTF-8"))
        return
    try:
        lines.add(line.removesuffix(b"\r").decode("utf-8"))
    except UnicodeDecodeError:
        lines.append_error(InputError("invalid_input", "the line is not valid UTF-8"))


LINE_PARSERS: dict[str, Callable[[bytes, ParsedRecords], None]] = {
    "application/x-ndjson": parse_json_line,
    "application/ndjson": parse_json_line,
    "application/jsonl": parse_json_line,
    "application/x-jsonlines": parse_json_line,
    "text/plain": parse_text_line,
}
# A line of white space is blank in ndjson; in plain text it is a text of white space.
_BLANK_JSON = re.compile(rb"(?:[ \t\r]*\n)+")
_BLANK_TEXT = re.compile(rb"(?:\r?\n)+")
_BLANK_STARTS = frozenset(b"\n\r\t ")


class LineReader:
    """Splits a byte stream into lines and parses them. Keeps one line and the current chunk in memory."""

    def __init__(self, parse: Callable[[bytes, ParsedRecords], None], *, max_line_bytes: int) -> None:
        self._parse = parse
        self._is_text = parse is parse_text_line
        self._blank_run = _BLANK_TEXT if self._is_text else _BLANK_JSON
        self._blank_error = (
            InputError("empty_input", "the line is empty")
            if self._is_text
            else InputError("invalid_json", "the line is empty")
        )
        self._blanks = 0  # lines since the last one that is not blank: only a line behind them makes inputs of them
        self._max_line_bytes = max_line_bytes
        self._rest = bytearray()
        self._skipping = False  # inside a line that is too long already
        self._first = True

    @property
    def held_bytes(self) -> int:
        """Bytes of the incomplete line that are kept."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> ParsedRecords:
        """The lines that this chunk completes."""
        lines = ParsedRecords()
        if self._first:
            chunk = bytes(self._rest) + chunk
            # Only the stream's own first bytes can be a BOM, however they were cut into chunks.
            self._first = len(chunk) < len(BOM) and BOM.startswith(chunk)
            self._rest[:] = chunk if self._first else b""
            chunk = b"" if self._first else chunk.removeprefix(BOM)
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            # A million blank lines are one step, not a million.
            if not self._rest and not self._skipping and chunk[start] in _BLANK_STARTS:
                blank = self._blank_run.match(chunk, start)
                if blank is not None:
                    self._blanks += chunk.count(b"\n", start, blank.end())
                    start = blank.end()
                    continue
            self._complete(chunk[start:end], lines)
            start = end + 1
        self._keep(chunk[start:], lines)
        return lines

    def finish(self) -> ParsedRecords:
        """The last line, where the stream did not end with a line feed."""
        lines = ParsedRecords()
        if self._rest:
            self._complete(b"", lines)
        self._skipping = False
        return lines

    def _keep(self, piece: bytes, lines: ParsedRecords) -> None:
        if self._skipping or not piece:
            return
        self._rest += piece
        if len(self._rest) > self._max_line_bytes:
            self._too_long(lines)
            self._skipping = True

    def _complete(self, piece: bytes, lines: ParsedRecords) -> None:
        if self._skipping:
            self._skipping = False
            return
        if self._rest:
            piece = bytes(self._rest) + piece
            self._rest.clear()
        if len(piece) > self._max_line_bytes:
            self._too_long(lines)
        elif not (piece.removesuffix(b"\r") if self._is_text else piece.strip(b" \t\r")):
            self._blanks += 1
        else:
            self._end_blanks(lines)
            self._parse(piece, lines)

    def _end_blanks(self, lines: ParsedRecords) -> None:
        if self._blanks:
            lines.append_error(self._blank_error, count=self._blanks)
            self._blanks = 0

    def _too_long(self, lines: ParsedRecords) -> None:
        self._rest.clear()
        self._end_blanks(lines)
        lines.append_error(InputError("input_too_long", f"the line is longer than {self._max_line_bytes} bytes"))


class GzipDecoder:
    """Inflates a gzip stream in bounded steps, so that a bomb costs time, never memory. Members may follow members."""

    def __init__(self, *, max_ratio: float = 0.0, what: str = "the body") -> None:
        self._what = what
        self._inflate = zlib.decompressobj(wbits=31)
        self._started = False
        self._max_ratio = max_ratio
        self._packed_bytes = self._bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Raises InvalidInput when the stream is not gzip, PayloadTooLarge when it grows beyond the ratio."""
        try:
            self._packed_bytes += len(chunk)
            while chunk:
                if self._inflate.eof:
                    self._inflate = zlib.decompressobj(wbits=31)
                self._started = True
                piece = self._inflate.decompress(chunk, GZIP_STEP_BYTES)
                chunk = self._inflate.unconsumed_tail or self._inflate.unused_data
                if piece:
                    self._bytes += len(piece)
                    self._check_ratio()
                    yield piece
        except zlib.error as error:
            fault = f"{self._what} is no gzip stream: compress it, or send it as it is, without Content-Encoding"
            if self._bytes:
                fault = f"the gzip stream is damaged behind the first {self._bytes:,} unpacked bytes: compress it anew"
            raise InvalidInput(fault, code="invalid_encoding") from error

    def _check_ratio(self) -> None:
        if self._max_ratio and self._bytes > max(RATIO_FREE_BYTES, self._packed_bytes * self._max_ratio):
            raise PayloadTooLarge(
                f"{self._what} is compressed to less than 1/{self._max_ratio:g} of its size: "
                "send it with less compression",
                code="compression_ratio_too_high",
            )

    def finish(self) -> None:
        """Raises InvalidInput when the stream ended in the middle of a member."""
        if self._started and not self._inflate.eof:
            raise InvalidInput(
                f"the gzip stream is cut off after {self._packed_bytes:,} bytes, before its end: send all of it",
                code="invalid_encoding",
            )


class IdentityDecoder:
    """The identity encoding: the same interface as GzipDecoder."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk

    def finish(self) -> None:
        pass


class ByteLimit:
    """Counts decoded bytes. Raises PayloadTooLarge past the limit."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._limit = limit

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise PayloadTooLarge(f"the corpus is larger than {self._limit} bytes: send it as several jobs")
