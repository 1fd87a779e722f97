"""Plain text, JSON lines, and one JSON array, as the lines that the server takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, AnyStr

import msgspec

from cli.errors import UsageError
from cli.files.columns import DEFAULT_ID_COLUMN, DEFAULT_TEXT_COLUMN, Columns, choose_columns
from cli.files.corpus import Corpus, json_line, row_line
from cli.files.source import MAX_LINE_CHARS, Source, read_upto

SAMPLED_LINES = 200
LARGEST_JSON_BYTES = 256 * 1024 * 1024
_decode = msgspec.json.decode


class PlainText(Corpus):
    """One text per line; lines end at the line feed (and a carriage return before it), at nothing else."""

    def lines(self) -> Iterator[bytes]:
        """As `Corpus.lines`."""
        end = self.source.line_end
        blank = 0
        for line, is_cut in _records(self.source.text_lines(), end):
            text = line.removesuffix(end).removesuffix("\r")
            if not text:
                blank += 1
                continue
            while blank:
                yield b'""\n'
                blank -= 1
            # A line that was cut is sent without its closing quote, so that the server refuses it.
            yield json_line(text)[:-1] + b"\n" if is_cut else json_line(text) + b"\n"


class JsonLines(Corpus):
    """A JSON string, a list of token ids or an object per line. Any other line is sent unchanged."""

    def __init__(self, source: Source, text: str | None, id: str | None) -> None:
        super().__init__(source)
        self.columns = _columns_of(
            (_object(raw) for raw in islice(source.raw_lines(), SAMPLED_LINES)), source, text, id
        )

    def lines(self) -> Iterator[bytes]:
        """As `Corpus.lines`."""
        blank = 0
        for raw, is_cut in _records(self.source.raw_lines(), b"\n"):
            if not raw.strip():
                blank += 1
                continue
            while blank:
                yield b"\n"
                blank -= 1
            if not is_cut and (row := _object(raw)):
                yield row_line(row, self.columns)
            else:
                yield raw if raw.endswith(b"\n") else raw + b"\n"


class JsonArray(Corpus):
    """One JSON array of texts or objects, held in memory."""

    def __init__(self, source: Source, values: list[Any], text: str | None, id: str | None) -> None:
        super().__init__(source)
        self._values = values
        self._read = 0
        rows = (value for value in islice(values, SAMPLED_LINES) if isinstance(value, dict))
        self.columns = _columns_of(rows, source, text, id)

    def lines(self) -> Iterator[bytes]:
        """As `Corpus.lines`."""
        for number, value in enumerate(self._values, 1):
            self._read = number
            yield row_line(value, self.columns) if isinstance(value, dict) else json_line(value) + b"\n"

    def fraction_read(self) -> float:
        """The share of elements that the latest `lines()` has read."""
        return self._read / max(len(self._values), 1)


def json_array(source: Source, *, largest_bytes: int = LARGEST_JSON_BYTES) -> list[Any] | None:
    """The elements of a file that is one JSON array of texts or objects; None for JSON lines, which may be arrays too.

    Raises UsageError for one that is too large to be held.
    """
    encoding = source.encoding
    start = source.head[encoding.mark_bytes :].decode(encoding.name, "ignore").lstrip()
    # A file that begins with a number holds lines of token ids.
    if start[:1] != "[" or start[1:].lstrip()[:1] not in ('"', "{", "[", "n", "t", "f"):
        return None
    with source.open() as file:
        body = read_upto(file, largest_bytes + 1)[encoding.mark_bytes :]
    if len(body) > largest_bytes:
        raise UsageError(
            f"{source.name} is one JSON array of more than {largest_bytes // 1024**2} MiB",
            "write one record a line, e.g. with `jq -c '.[]'`",
        )
    try:
        values = json.loads(body.decode(encoding.name))
    except (ValueError, RecursionError):
        return None
    # In an array with texts, any other value is an error of its own row.
    return values if any(isinstance(value, str | dict | list) for value in values) else None


def holds_objects(source: Source) -> bool:
    """True when every sampled line that is not blank is a JSON object."""
    any_line = False
    for raw in islice(source.raw_lines(), SAMPLED_LINES):
        if raw.strip():
            any_line = True
            if not _object(raw):
                return False
    return any_line


def _columns_of(rows: Iterator[dict[str, Any]], source: Source, text: str | None, id: str | None) -> Columns:
    found: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            found[name] = found.get(name, True) and (value is None or isinstance(value, str))
    if found:
        return choose_columns(found, source.name, text=text, id=id)
    return Columns(text or DEFAULT_TEXT_COLUMN, id or DEFAULT_ID_COLUMN)


def _records(pieces: Iterator[AnyStr], end: AnyStr) -> Iterator[tuple[AnyStr, bool]]:
    """Whole lines, and of one that is longer than LONGEST_LINE its beginning, with True."""
    skipping = False
    for piece in pieces:
        ended = piece.endswith(end)
        if skipping:
            skipping = not ended
            continue
        skipping = not ended and len(piece) >= MAX_LINE_CHARS
        yield piece, skipping


def _object(raw: bytes) -> dict[str, Any]:
    """The object on a line; empty when the line holds anything else."""
    if raw.lstrip()[:1] != b"{":
        return {}
    try:
        value = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = _lenient(raw)
    return value if isinstance(value, dict) else {}


def _lenient(raw: bytes) -> Any:
    """JSON as Python and JavaScript write it: with NaN, and with halves of surrogate pairs."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
