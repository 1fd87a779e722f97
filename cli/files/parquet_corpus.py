"""Parquet, a batch of rows at a time: whatever type holds text is read as text, and no other type is."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import types

from cli.errors import CliError, Failure, UsageError
from cli.files.columns import Columns, choose_columns
from cli.files.corpus import Corpus, row_line
from cli.files.source import Source
from engine.corpus.parquet_rows import BATCH_ROWS, as_id, as_text, holds_text, open_file, stored, values_of

MAGIC = b"PAR1"
FOOTER_END_BYTES = 8  # the length of the footer, and MAGIC again
MIN_BYTES = len(MAGIC) + FOOTER_END_BYTES
UNSUPPORTED = re.compile(r"\b(not supported|unsupported)\b", re.I)
AGAIN = "write it again, or fetch it again"


class Parquet(Corpus):
    """The text column and the id column of a Parquet file."""

    def __init__(self, source: Source, text: str | None, id: str | None) -> None:
        super().__init__(source)
        self._rows_read: int = 0
        self._rows_of_groups: list[int] = []  # as the footer has them; empty: it cannot be read
        with self._open() as file:
            metadata, schema = file.metadata, file.schema_arrow
        self._rows: int = max(metadata.num_rows, 1)
        self._rows_of_groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        found = {field.name: holds_text(field.type) for field in schema}
        self.columns = choose_columns(found, source.name, text=text, id=id)
        for name in (self.columns.text, self.columns.id):
            if name is not None and schema.names.count(name) > 1:
                raise UsageError(f"{source.name} has {schema.names.count(name)} columns called {name!r}", "rename one")
        self._names = [self.columns.text, *([self.columns.id] if self.columns.id else [])]
        self._check_types(schema)

    def lines(self) -> Iterator[bytes]:
        """As `Corpus.lines`, a batch of rows at a time."""
        columns, plain = self.columns, Columns("text", "id")
        self._rows_read = 0
        with self._open() as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=self._names):
                texts = values_of(batch.column(columns.text))
                ids = values_of(batch.column(columns.id)) if columns.id else [None] * batch.num_rows
                for text, row_id in zip(texts, ids, strict=True):
                    yield row_line({"text": as_text(text), "id": as_id(row_id)}, plain)
                self._rows_read += batch.num_rows

    def fraction_read(self) -> float:
        """The share of rows that the latest `lines()` has read."""
        return self._rows_read / self._rows

    def _check_types(self, schema: Any) -> None:
        kind = schema.field(self.columns.text).type
        if not holds_text(kind):
            raise UsageError(
                f"{self.source.name}: column {self.columns.text!r} holds {kind}, not text",
                f"choose with --text-column; columns: {', '.join(schema.names)}",
            )
        if self.columns.id is not None and types.is_nested(stored(schema.field(self.columns.id).type)):
            raise UsageError(
                f"{self.source.name}: column {self.columns.id!r} holds {schema.field(self.columns.id).type}, "
                "which names no row",
                "choose another with --id-column",
            )

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with self.source.open() as raw, open_file(raw) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            reason = str(error).partition("\n")[0]
            if isinstance(error, pa.ArrowNotImplementedError | MemoryError) or UNSUPPORTED.search(reason):
                part, fix = reason, "write it with pyarrow's defaults"  # nothing is damaged
            else:
                part, fix = self._damage()
            raise CliError(
                f"{self.source.name} is not readable as Parquet: {part}", fix, failure=Failure.FILE
            ) from error

    def _damage(self) -> tuple[str, str]:
        """Which part of the file cannot be read, and what to do about it."""
        with self.source.open() as raw:
            size = raw.seek(0, io.SEEK_END)
            raw.seek(max(0, size - FOOTER_END_BYTES))
            end = raw.read()
            raw.seek(0)
            is_parquet = raw.read(len(MAGIC)) == MAGIC
        if not size:
            return "it is empty", AGAIN
        footer_bytes = int.from_bytes(end[:-4], "little")
        if end.endswith(b"PARE"):
            return "its footer is encrypted", "write it without encryption"
        if not end.endswith(MAGIC) or size < MIN_BYTES:
            if not is_parquet:
                return f"neither its first nor its last bytes are {MAGIC.decode()}", "say what it is with --format"
            cause = "it is cut off there, or something was written behind the footer"
            return f"it has no footer at its end, byte {size:,}: {cause}", AGAIN
        if footer_bytes > size - MIN_BYTES:
            return f"its footer would have {footer_bytes:,} bytes, and the file has {size:,}", AGAIN
        if not self._rows_of_groups:
            return f"its footer, bytes {size - FOOTER_END_BYTES - footer_bytes:,} to {size:,}, is damaged", AGAIN
        return self._damaged_data(), AGAIN

    def _damaged_data(self) -> str:
        """The first column and row group that cannot be read. A batch has rows of two row groups at the most."""
        first_row, count = 1, len(self._rows_of_groups)
        for group, rows in enumerate(self._rows_of_groups):
            if first_row + rows > self._rows_read:
                for name in self._names:
                    try:
                        with self.source.open() as raw, open_file(raw) as file:
                            for _ in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[name]):
                                pass
                    except (pa.ArrowException, OSError):
                        where = f"row group {group + 1} of {count} (rows {first_row:,} to {first_row + rows - 1:,})"
                        return f"column {name!r} is damaged in {where}; the footer is whole"
            first_row += rows
        return "a column is damaged; the footer is whole"
