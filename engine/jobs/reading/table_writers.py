"""Tables of results as bytes of Parquet or of an Arrow file, in groups of bounded size.

Needs pyarrow, an optional package: import this module where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow.ipc import new_file
from pyarrow.parquet import ParquetWriter

from engine.jobs.reading.result_pages import PAGE_BYTES, Page, PagePart
from models.embedding import Matrix

TableFormat = Literal["parquet", "arrow"]
# A row group of Parquet is written at once: each reader has so many bytes of vectors in memory, and about as many
# again as the file's own. Smaller ones cost time, and their entries in the footer, which is written at the end, memory.
ROW_GROUP_BYTES = 4 * 1024 * 1024
# Measured on 1,536 numbers a row: with pages of 1 MiB, pyarrow's default, a row costs a tenth more.
DATA_PAGE_BYTES = 64 * 1024
# Record batches of Arrow that are made in one step, each of a page.
BATCH_GROUP_BYTES = 1024 * 1024
# Pieces of less are joined, so that the socket is not given a few bytes at a time.
MIN_PIECE_BYTES = 64 * 1024


def schema_of(width: int) -> Any:
    """index, id, embedding (null where the input failed), error_code, error_message, truncated."""
    number = pa.field("element", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("embedding", pa.list_(number, width)),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("truncated", pa.bool_(), nullable=False),
        ]
    )


class _Sink:
    """The file that a writer writes to: it keeps pieces until they are taken."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[Any] = []
        self._bytes = 0

    def write(self, piece: Any) -> int:
        """Keeps bytes, and Arrow's buffers, which nobody changes, without a copy."""
        self._pieces.append(piece)
        self._bytes += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        return

    def close(self) -> None:
        self.closed = True

    def take(self) -> list[bytes | memoryview]:
        """What was written since it was last taken, in pieces of at most PAGE_BYTES."""
        pieces, self._pieces = self._pieces, []
        return list(_resized(pieces))


class TableWriter:
    """Writes parts of pages in index order; rows without an outcome are left out.

    `group_bytes`: how many bytes of vectors to pass to `write` at a time.
    """

    def __init__(self, format: TableFormat, width: int) -> None:
        self._width = width
        self._schema = schema_of(width)
        self._sink = _Sink()
        self._is_parquet = format == "parquet"
        self.group_bytes = ROW_GROUP_BYTES if self._is_parquet else BATCH_GROUP_BYTES
        if self._is_parquet:
            self._writer = ParquetWriter(
                self._sink,
                self._schema,
                # Numbers of vectors do not shrink by it, and trying costs more time than everything else here.
                compression=dict.fromkeys(self._schema.names, "zstd") | {"embedding.list.element": "none"},
                use_dictionary=["error_code", "error_message"],
                write_statistics=["index"],
                data_page_size=DATA_PAGE_BYTES,
            )
        else:
            self._writer = new_file(self._sink, self._schema)

    def write(self, parts: Sequence[PagePart]) -> list[bytes | memoryview]:
        """The bytes of one row group, or of a record batch for each part."""
        batches = [batch for part in parts if (batch := self._batch(*part)) is not None]
        if batches and self._is_parquet:
            table = pa.Table.from_batches(batches)
            self._writer.write_table(table, row_group_size=table.num_rows)
        elif batches:
            for batch in batches:
                self._writer.write_batch(batch)
        return self._sink.take()

    def end(self) -> list[bytes | memoryview]:
        """The footer. A file that ends before it is refused by every reader."""
        self._writer.close()
        return self._sink.take()

    def _batch(self, page: Page, low: int, high: int) -> Any:
        """The rows of a part; None where it has none."""
        shard, errors = page.shard, page.shard.errors or {}
        runs = [(max(first, low), rows[max(low - first, 0) : max(high - first, 0)]) for first, rows in page.blocks]
        runs = [(first, rows) for first, rows in runs if len(rows)]
        has_vector = np.zeros(high - low, dtype=bool)
        for first, rows in runs:
            has_vector[first - low : first - low + len(rows)] = True
        has_outcome = has_vector.copy()
        if errors:
            has_outcome |= np.fromiter((index in errors for index in range(low, high)), dtype=bool, count=high - low)
        has_vector = has_vector[has_outcome]
        indexes = np.flatnonzero(has_outcome) + low
        if not len(indexes):
            return None
        failures = {at: errors[int(indexes[at])] for at in np.flatnonzero(~has_vector).tolist()}
        columns = [
            pa.array(indexes, pa.int64()),
            _texts([shard.caller_id(index) for index in indexes.tolist()] if shard.ids else None, len(indexes)),
            self._vectors(runs, indexes, has_vector),
            *(
                _texts(
                    [failures.get(at, {}).get(key) for at in range(len(indexes))] if failures else None, len(indexes)
                )
                for key in ("code", "message")
            ),
            pa.array(has_vector & np.isin(indexes, list(shard.truncated))),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _vectors(self, runs: Sequence[tuple[int, Matrix]], indexes: Any, has_vector: Any) -> Any:
        """The column of vectors: of one run without a copy."""
        kind = self._schema.field("embedding").type
        if len(runs) == 1 and len(runs[0][1]) == len(indexes):
            return pa.FixedSizeListArray.from_arrays(pa.array(runs[0][1].reshape(-1)), type=kind)
        matrix = np.zeros((len(indexes), self._width), dtype="<f4")
        for first, rows in runs:
            position = int(np.searchsorted(indexes, first))
            matrix[position : position + len(rows)] = rows
        mask = None if has_vector.all() else pa.array(~has_vector)
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=kind, mask=mask)


def _texts(values: Sequence[str | None] | None, count: int) -> Any:
    return pa.nulls(count, pa.string()) if values is None else pa.array(values, pa.string())


def _resized(pieces: Sequence[Any]) -> Iterator[bytes | memoryview]:
    """The same bytes: small pieces joined, large ones cut."""
    small: list[Any] = []
    small_bytes = 0
    for piece in pieces:
        if len(piece) < MIN_PIECE_BYTES:
            small.append(piece)
            small_bytes += len(piece)
        if small and (len(piece) >= MIN_PIECE_BYTES or small_bytes >= PAGE_BYTES - MIN_PIECE_BYTES):
            yield b"".join(small)
            small, small_bytes = [], 0
        if len(piece) >= MIN_PIECE_BYTES:
            view = memoryview(piece)
            for low in range(0, len(view), PAGE_BYTES):
                yield view[low : low + PAGE_BYTES]
    if small:
        yield b"".join(small)
