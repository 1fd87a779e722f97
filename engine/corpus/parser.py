"""Parsers of corpora that arrive in chunks: one protocol for lines, CSV and Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from engine.corpus.lines import LineReader, ParsedRecords, TextLine, append_record, parse_json_line

# Bounds the work of one step: lines may be as short as two bytes.
STEP_BYTES = 64 * 1024


class CorpusParser(Protocol):
    """Turns chunks into records. Each step of its iterators takes some tens of milliseconds at most.

    All raise InvalidInput where the corpus cannot be read any further.
    """

    @property
    def held_bytes(self) -> int:
        """Bytes in memory of records that are not complete."""

    @property
    def bytes_at_end(self) -> int | None:
        """Bytes that finish() has to parse; None: many."""

    def feed(self, chunk: bytes) -> Iterator[ParsedRecords]:
        """The records that this chunk completes."""

    def finish(self) -> Iterator[ParsedRecords]:
        """The last records."""


class Decoder(Protocol):
    """Unpacks a stream."""

    def feed(self, chunk: bytes, /) -> Iterator[bytes]:
        """What this chunk unpacks to."""

    def finish(self) -> None:
        """Raises InvalidInput when the stream is cut off."""


class LineParser:
    """A CorpusParser of lines."""

    def __init__(self, parse: Callable[[bytes, ParsedRecords], None], *, max_line_bytes: int) -> None:
        self._reader = LineReader(parse, max_line_bytes=max_line_bytes)

    @property
    def held_bytes(self) -> int:
        return self._reader.held_bytes

    @property
    def bytes_at_end(self) -> int:
        return self.held_bytes

    def feed(self, chunk: bytes) -> Iterator[ParsedRecords]:
        for low in range(0, len(chunk), STEP_BYTES):
            yield self._reader.feed(chunk[low : low + STEP_BYTES])

    def finish(self) -> Iterator[ParsedRecords]:
        yield self._reader.finish()


def json_line_parser(text: str | None, id: str | None) -> Callable[[bytes, ParsedRecords], None]:
    """A parser of JSON lines whose objects have their text and id under these names."""
    if text in (None, "text") and id in (None, "id"):
        return parse_json_line
    text_name, id_name = text or "text", id or "id"

    def parse(line: bytes, lines: ParsedRecords) -> None:
        if line.lstrip()[:1] != b"{":
            parse_json_line(line, lines)
            return
        try:
            members = _MEMBERS.decode(line)
            value = msgspec.json.decode(
                b'{"text":%b,"id":%b}' % (members.get(text_name, b"null"), members.get(id_name, b"null")), type=TextLine
            )
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            parse_json_line(_renamed(line, text_name, id_name), lines)
            return
        append_record(value, lines)

    return parse


_MEMBERS: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _renamed(line: bytes, text: str, id: str) -> bytes:
    """A line that is no input, with the usual names: what is wrong with it is explained in one place."""
    try:
        members = _MEMBERS.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return line
    usual = {name: members[own] for name, own in (("text", text), ("id", id)) if own in members}
    return msgspec.json.encode(usual)
