"""A corpus on disk or on a pipe, read as the lines that the server takes. Memory stays flat whatever its size.

One record of the file is one line sent, good or bad: the server answers a bad one with an error of that index, so an
index always means the same record on both sides. A file that cannot be read for certain is refused as a whole.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, AnyStr

import msgspec

from cli.errors import CliError, UsageError
from cli.files.columns import DEFAULT_ID_COLUMN, DEFAULT_TEXT_COLUMN, Columns, choose_columns
from cli.files.source import LONGEST_LINE, PACKED_ENDINGS, STDIN, Source, read_upto, refuse_other_formats

SAMPLED_LINES = 200
LARGEST_JSON_BYTES = 256 * 1024 * 1024
ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
}
PACKED_PARQUET = "unpack it first: Parquet packs its own columns"
FORMATS = ("jsonl", "csv", "tsv", "txt", "parquet")
READABLE = "readable are .jsonl, .ndjson, .json, .csv, .tsv and .txt, each also with .gz or .zst, and .parquet"

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Corpus(ABC):
    """A file of texts. `lines()` may be called again, to send the same body once more."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = Path(source.name).name

    @property
    def notes(self) -> list[str]:
        """What the user should know of how the file is read."""
        return self.source.notes

    @abstractmethod
    def lines(self) -> Iterator[bytes]:
        """Each record as one line of JSON, with its line feed, in the file's order. Blank records at the end are none.

        Raises UsageError or CliError that names the line, where a record cannot be read for certain.
        """

    def fraction_read(self) -> float:
        """How much of the file the latest `lines()` has read, from 0 to 1."""
        return self.source.fraction_read()


class PlainText(Corpus):
    """One text per line; lines end at the line feed (and a carriage return before it), at nothing else."""

    def lines(self) -> Iterator[bytes]:
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
            # A line that was cut goes out without its closing quote, so that nobody takes its beginning for a text.
            yield json_line(text)[:-1] + b"\n" if is_cut else json_line(text) + b"\n"


class JsonLines(Corpus):
    """A JSON string, a list of token ids or an object per line. What is no such thing is sent on as it stands."""

    def __init__(self, source: Source, text: str | None, id: str | None) -> None:
        super().__init__(source)
        self.columns = _columns_of(
            (_object(raw) for raw in islice(source.raw_lines(), SAMPLED_LINES)), source, text, id
        )

    def lines(self) -> Iterator[bytes]:
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
        for number, value in enumerate(self._values, 1):
            self._read = number
            yield row_line(value, self.columns) if isinstance(value, dict) else json_line(value) + b"\n"

    def fraction_read(self) -> float:
        return self._read / max(len(self._values), 1)


def open_corpus(
    path: Path,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    format: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Corpus:
    """Open a file for what it holds: `format`, else its name's ending, else its content; "-" is stdin.

    Raises UsageError for what is not readable, or not for certain, and for a column that is not there.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"there is no format {format!r}", f"--format is one of {', '.join(FORMATS)}")
    if format is None and path != STDIN and path.is_file() and path.suffix and _ending(path) not in ENDINGS:
        raise UsageError(f"{path.name}: its ending does not tell what it holds", f"give --format; {READABLE}")
    if path.suffix.lower() in PACKED_ENDINGS and _ending(path) == ".parquet":
        raise UsageError(f"{path.name} is a packed Parquet file", PACKED_PARQUET)
    source = Source(path, encoding=encoding)
    kind = _kind(source, format)
    if delimiter is not None and kind not in ("csv", "tsv"):
        raise UsageError(f"{source.name} has no delimiter", "--delimiter is for CSV files")
    if kind == "parquet":
        if encoding is not None:
            raise UsageError("a Parquet file needs no --encoding", "leave it out")
        from cli.files.parquet_corpus import Parquet

        return Parquet(source, text_column, id_column)
    if format is None:
        refuse_other_formats(source)
    if kind in ("csv", "tsv"):
        from cli.files.csv_corpus import Csv

        if delimiter is None and kind == "tsv":
            delimiter = "\t"
        return Csv(source, text_column, id_column, delimiter)
    if kind == "jsonl":
        values = json_array(source)
        if values is not None:
            return JsonArray(source, values, text_column, id_column)
        return JsonLines(source, text_column, id_column)
    if text_column or id_column:
        raise UsageError("a text file has no columns", "leave out --text-column and --id-column")
    if format is None and _all_objects(source):
        raise UsageError(f"{source.name} holds JSON objects, not plain texts", "give --format jsonl, or --format txt")
    return PlainText(source)


def _ending(path: Path) -> str:
    return (Path(path.stem) if path.suffix.lower() in PACKED_ENDINGS else path).suffix.lower()


def _kind(source: Source, format: str | None) -> str:
    """What to read the file as; a Parquet file is known by its first bytes, whatever its name."""
    kind = format or ENDINGS.get(source.suffix)
    if source.is_parquet:
        if format not in (None, "parquet"):
            raise UsageError(f"{source.name} is a Parquet file, not {format}", "leave out --format")
        if kind != "parquet":
            source.notes.append(f"{source.name} is read as Parquet, which it is")
        kind = "parquet"
    if kind == "parquet" and source.packing:
        raise UsageError(f"{source.name} is a packed Parquet file", PACKED_PARQUET)
    if kind is not None:
        return kind
    refuse_other_formats(source)
    if _all_objects(source) or json_array(source) is not None:
        source.notes.append(f"{source.name} is read as JSON lines")
        return "jsonl"
    raise UsageError(f"nothing tells what {source.name} holds", f"give --format: {', '.join(FORMATS)}")


def _all_objects(source: Source) -> bool:
    """True when every sampled line that is not blank is a JSON object."""
    any_line = False
    for raw in islice(source.raw_lines(), SAMPLED_LINES):
        if raw.strip():
            any_line = True
            if not _object(raw):
                return False
    return any_line


def json_array(source: Source, *, largest_bytes: int = LARGEST_JSON_BYTES) -> list[Any] | None:
    """The elements of a file that is one JSON array of texts or objects; None for JSON lines, which may be arrays too.

    Raises UsageError for one that is too large to be held.
    """
    encoding = source.encoding
    start = source.head[encoding.mark_bytes :].decode(encoding.name, "ignore").lstrip()
    # What begins with a number is lines of token ids.
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
    # Where some are texts, what is none is the error of its own row.
    return values if any(isinstance(value, str | dict | list) for value in values) else None


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
        skipping = not ended and len(piece) >= LONGEST_LINE
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


def row_line(row: dict[str, Any], columns: Columns) -> bytes:
    """A record as the server's line: its text as it is, its id as a string."""
    text, row_id = row.get(columns.text), row.get(columns.id) if columns.id else None
    if row_id is None or row_id == "":
        return b'{"text":' + json_line(text) + b"}\n"
    name = row_id if isinstance(row_id, str) else json_line(row_id).decode("utf-8", "surrogateescape")
    return b'{"id":' + json_line(name) + b',"text":' + json_line(text) + b"}\n"


def json_line(value: Any) -> bytes:
    """A value as JSON. Bytes that were no UTF-8 go out as they came in: the server refuses this one input."""
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError):
        pass
    if isinstance(value, str):
        try:
            escaped: bytes = _encode(value.encode("utf-8", "surrogateescape").decode("latin-1"))
            return escaped.decode("utf-8").encode("latin-1")
        except UnicodeEncodeError:
            pass
    return json.dumps(value).encode()  # half a surrogate pair: the server names what it does not like


def no_texts(source: Source) -> CliError:
    return CliError(f"{source.name} holds no texts", "is it the right file?")
