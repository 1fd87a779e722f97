"""Parquet that arrives in chunks: spooled to an unnamed file on disk, because its index is at its end.

Needs pyarrow, an optional package: import this module where it is used.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
from pyarrow import types

from engine.corpus.columns import Columns, choose_columns
from engine.corpus.lines import LONG_ID, MAX_ID_BYTES, RATIO_FREE_BYTES, ParsedRecords
from engine.corpus.parquet_rows import BATCH_ROWS, as_id, as_text, holds_text, open_file, stored, values_of
from engine.corpus.unreadable import UnreadableCorpus
from models.embedding import InputError
from models.errors import Overloaded, PayloadTooLarge

MAGIC = b"PAR1"
# Of disk space that spooled files leave to everything else.
RESERVED_BYTES = 1024**3
CHECK_EVERY_BYTES = 64 * 1024**2
# Bytes of a row group's pages that are read at a time.
READ_BYTES = 1024 * 1024
_NO_TEXT = InputError("invalid_input", "the text is null")
_NO_UTF8 = InputError("invalid_input", "the text is not valid UTF-8")


class ParquetParser:
    """A CorpusParser of Parquet: all records come at the end. `folder`: where it is spooled; nothing stays there."""

    def __init__(
        self,
        *,
        text_column: str | None,
        id_column: str | None,
        max_line_bytes: int,
        max_bytes: int,
        max_ratio: float,
        folder: Path,
        where: str = "the body",
    ) -> None:
        self._text_column = text_column
        self._id_column = id_column
        self._too_long = InputError("input_too_long", f"the text is longer than {max_line_bytes} bytes")
        self._max_text_bytes = max_line_bytes
        self._max_bytes = max_bytes
        self._max_ratio = max_ratio
        self._text_bytes = 0
        self._folder = folder
        self._where = where
        self._file: BinaryIO | None = None
        self._bytes = self._check_room_at = 0

    @property
    def held_bytes(self) -> int:
        return 0

    @property
    def bytes_at_end(self) -> None:
        return None

    def feed(self, chunk: bytes) -> Iterator[ParsedRecords]:
        if self._file is None:
            self._file = cast("BinaryIO", tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115  # until the end
        if self._bytes >= self._check_room_at:
            self._check_room_at = self._bytes + CHECK_EVERY_BYTES
            if shutil.disk_usage(self._folder).free < RESERVED_BYTES:
                raise Overloaded("There is no room for a Parquet file now: try again later.", retry_after_s=30.0)
        self._bytes += len(chunk)
        if self._bytes > self._max_bytes:
            raise PayloadTooLarge(f"the Parquet file is larger than {self._max_bytes} bytes: send it as several jobs")
        self._file.write(chunk)
        yield ParsedRecords()

    def finish(self) -> Iterator[ParsedRecords]:
        if self._file is None:
            raise self._unreadable("it is empty")
        try:
            yield from self._read(self._file)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise self._unreadable(str(error).partition("\n")[0][:300]) from error
        finally:
            self._file.close()

    def _read(self, file: BinaryIO) -> Iterator[ParsedRecords]:
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            raise self._unreadable(f"its first bytes are not {MAGIC.decode()}")
        file.seek(0)
        with open_file(file) as parquet:
            columns = self._choose(parquet.schema_arrow)
        names = [name for name in (columns.text, columns.id) if name is not None]
        file.seek(0)
        # Repeated cells come as one value and its positions, so that a small file cannot become a large batch.
        with open_file(file, read_dictionary=names, buffer_size=READ_BYTES) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
                ids = _cells(batch.column(columns.id)) if columns.id else [None] * batch.num_rows
                texts = _cells(batch.column(columns.text))
                self._check_ratio(texts)
                yield self._records(texts, ids)

    def _check_ratio(self, texts: Sequence[Any]) -> None:
        """A text that stands in each of millions of rows is stored once, and costs as much as so many texts."""
        self._text_bytes += sum(len(cell) for cell in texts if cell is not None)
        if self._text_bytes > max(RATIO_FREE_BYTES, self._bytes * self._max_ratio):
            raise PayloadTooLarge(
                f"{self._where} holds more than {self._max_ratio:g} times its size as text: send each text once",
                code="compression_ratio_too_high",
            )

    def _choose(self, schema: Any) -> Columns:
        found = {field.name: holds_text(field.type) for field in schema}
        columns = choose_columns(found, self._where, text=self._text_column, id=self._id_column)
        for name in (columns.text, columns.id):
            if name is not None and schema.names.count(name) > 1:
                count = schema.names.count(name)
                raise UnreadableCorpus(f"{self._where} has {count} columns called {name!r}", "rename all but one")
        kind = schema.field(columns.text).type
        if not holds_text(kind):
            raise UnreadableCorpus(
                f"column {columns.text!r} of {self._where} holds {kind}, not text",
                f"choose another with text_column; columns: {', '.join(schema.names)[:500]}",
                param="text_column",
            )
        if columns.id is not None and types.is_nested(stored(schema.field(columns.id).type)):
            raise UnreadableCorpus(
                f"column {columns.id!r} of {self._where} holds {schema.field(columns.id).type}, which names no row",
                "choose another with id_column",
                param="id_column",
            )
        return columns

    def _records(self, texts: Sequence[Any], ids: Sequence[Any]) -> ParsedRecords:
        records = ParsedRecords()
        for cell, row_id in zip(texts, ids, strict=True):
            caller_id, error = _id_of(row_id)
            text = None
            if cell is None:
                error = _NO_TEXT
            elif len(cell) > self._max_text_bytes:
                error = self._too_long
            else:
                text = as_text(cell)
                if isinstance(cell, bytes) and not _is_utf8(cell):
                    error = _NO_UTF8
            if error is not None or text is None:
                records.append_error(error or _NO_TEXT, caller_id)
            else:
                records.add(text, caller_id)
        return records

    def _unreadable(self, reason: str) -> UnreadableCorpus:
        fix = "write it again, or send it again"
        return UnreadableCorpus(f"{self._where} is not readable as Parquet: {reason}", fix)


def _cells(column: Any) -> list[Any]:
    """The cells as Python values. Cells with the same value are one object."""
    if not types.is_dictionary(column.type):
        return values_of(column)
    values = values_of(column.dictionary)
    return [None if at is None else values[at] for at in column.indices.to_pylist()]


def _id_of(cell: Any) -> tuple[str | None, InputError | None]:
    if isinstance(cell, str | bytes) and len(cell) > MAX_ID_BYTES:
        return None, LONG_ID
    text = as_id(cell)
    if text is not None and len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return None, LONG_ID
    return text or None, None


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True
