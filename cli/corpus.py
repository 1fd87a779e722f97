"""A corpus on disk, read as the lines that the server takes. Memory stays flat whatever the file's size.

One record of the file is one line sent, good or bad: the server answers a bad one with an error of that index, so an
index always means the same record on both sides.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cli.columns import DEFAULT_ID_COLUMN, DEFAULT_TEXT_COLUMN, Columns, choose_columns
from cli.errors import CliError, UsageError

SAMPLED_LINES = 200
LARGEST_CSV_FIELD_CHARS = 64 * 1024 * 1024
PARQUET_BATCH_ROWS = 1024

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Corpus(ABC):
    """A file of texts. `lines()` may be called again, to send the same body once more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._progress: Callable[[], float] = lambda: 0.0

    @abstractmethod
    def lines(self) -> Iterator[bytes]:
        """Each record as one line of JSON, with its line feed, in the file's order."""

    def fraction_read(self) -> float:
        """How much of the file the latest `lines()` has read, from 0 to 1."""
        return self._progress()

    @contextmanager
    def _bytes(self) -> Iterator[BinaryIO]:
        size = max(self.path.stat().st_size, 1)
        with self.path.open("rb", buffering=256 * 1024) as raw:
            self._progress = lambda: 1.0 if raw.closed else raw.tell() / size
            if self.path.suffix != ".gz":
                yield raw
                return
            try:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield io.BufferedReader(unpacked, 256 * 1024)
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise CliError(f"{self.path} is not a whole gzip file: {error}") from error

    def _raw_lines(self) -> Iterator[bytes]:
        with self._bytes() as file:
            for number, raw in enumerate(file):
                yield raw if number else raw.removeprefix(codecs.BOM_UTF8)


class PlainText(Corpus):
    """One text per line; lines end at the line feed (and a carriage return before it), at nothing else."""

    def lines(self) -> Iterator[bytes]:
        for raw in self._raw_lines():
            yield _json(raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")) + b"\n"


class JsonLines(Corpus):
    """A JSON string, a list of token ids or an object per line. What is no such thing is sent on as it stands."""

    def __init__(self, path: Path, text: str | None, id: str | None) -> None:
        super().__init__(path)
        found: dict[str, bool] = {}
        for raw in islice(self._raw_lines(), SAMPLED_LINES):
            for name, value in _object(raw).items():
                found[name] = found.get(name, True) and (value is None or isinstance(value, str))
        if found:
            self.columns = choose_columns(found, str(path), text=text, id=id)
        else:
            self.columns = Columns(text or DEFAULT_TEXT_COLUMN, id or DEFAULT_ID_COLUMN)

    def lines(self) -> Iterator[bytes]:
        text, id_column = self.columns.text, self.columns.id
        for raw in self._raw_lines():
            if row := _object(raw):
                yield _row_line(row.get(text), row.get(id_column) if id_column else None)
            else:
                yield raw if raw.endswith(b"\n") else raw + b"\n"


class Csv(Corpus):
    """A header, then a record per row. Empty rows keep their index."""

    def __init__(self, path: Path, text: str | None, id: str | None) -> None:
        super().__init__(path)
        csv.field_size_limit(LARGEST_CSV_FIELD_CHARS)
        with self._rows() as rows:
            header = next(rows, [])
        if not header:
            raise UsageError(f"{path} has no header row", "its first line must name the columns")
        self.columns = choose_columns(dict.fromkeys(header, True), str(path), text=text, id=id)
        self._text_at = header.index(self.columns.text)
        self._id_at = None if self.columns.id is None else header.index(self.columns.id)

    @contextmanager
    def _rows(self) -> Iterator[Iterator[list[str]]]:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with self._bytes() as file:
            text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
            try:
                yield csv.reader(text)
            except csv.Error as error:
                raise CliError(f"{self.path} is not readable as CSV: {error}") from error
            finally:
                text.detach()  # the file is closed by whoever opened it

    def lines(self) -> Iterator[bytes]:
        text_at, id_at = self._text_at, self._id_at
        with self._rows() as rows:
            next(rows, None)
            for row in rows:
                text = row[text_at] if text_at < len(row) else None
                yield _row_line(text, row[id_at] if id_at is not None and id_at < len(row) else None)


class Parquet(Corpus):
    """A Parquet file, a batch of rows at a time, of the two columns only."""

    def __init__(self, path: Path, text: str | None, id: str | None) -> None:
        super().__init__(path)
        with self._open() as file:
            found = {field.name: str(field.type) in ("string", "large_string") for field in file.schema_arrow}
        self.columns = choose_columns(found, str(path), text=text, id=id)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(self.path) as file:
                yield file
        except ArrowException as error:
            raise CliError(f"{self.path} is not readable as Parquet: {error}") from error

    def lines(self) -> Iterator[bytes]:
        text, id_column = self.columns.text, self.columns.id
        rows_read = 0
        with self._open() as file:
            total = max(file.metadata.num_rows, 1)
            self._progress = lambda: rows_read / total
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=[text, *([id_column] if id_column else [])]):
                ids = batch.column(id_column).to_pylist() if id_column else [None] * batch.num_rows
                for value, row_id in zip(batch.column(text).to_pylist(), ids, strict=True):
                    yield _row_line(value, row_id)
                rows_read += batch.num_rows


def open_corpus(path: Path, *, text_column: str | None = None, id_column: str | None = None) -> Corpus:
    """Open a file by its name's ending. Raises UsageError for an ending or a column that is not there."""
    if not path.is_file():
        raise UsageError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    kind = Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        return JsonLines(path, text_column, id_column)
    if kind == ".csv":
        return Csv(path, text_column, id_column)
    if kind == ".parquet" and path.suffix != ".gz":
        return Parquet(path, text_column, id_column)
    if kind != ".txt":
        raise UsageError(
            f"{path.name}: its ending does not tell what it holds",
            "readable are .jsonl, .ndjson, .csv and .txt, each also with .gz, and .parquet",
        )
    if text_column or id_column:
        raise UsageError("a text file has no columns", "leave out --text-column and --id-column")
    return PlainText(path)


def _object(raw: bytes) -> dict[str, Any]:
    """The object on a line; empty when the line holds anything else."""
    if raw.lstrip()[:1] != b"{":
        return {}
    try:
        value = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _row_line(text: Any, row_id: Any) -> bytes:
    if row_id is None or row_id == "":
        return b'{"text":' + _json(text) + b"}\n"
    return b'{"id":' + _json(row_id if isinstance(row_id, str) else str(row_id)) + b',"text":' + _json(text) + b"}\n"


def _json(value: Any) -> bytes:
    try:
        return _encode(value)
    except UnicodeEncodeError:
        # Bytes that were no UTF-8 go out as they came in, so that the server refuses this one input, not the file.
        escaped: bytes = _encode(value.encode("utf-8", "surrogateescape").decode("latin-1"))
        return escaped.decode("utf-8").encode("latin-1")
