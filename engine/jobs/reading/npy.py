"""Vectors of a job in NumPy's own format: its length is known before it is read, so any range of its bytes can be."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
from sqlalchemy import Row

from engine.jobs.reading.result_pages import PAGE_BYTES, IndexRange, Page, read_pages
from engine.storage.database import Database


async def npy(
    database: Database, job: Row[Any], indexes: IndexRange, *, complete: bool = False, width: int | None = None
) -> AsyncIterator[bytes | memoryview]:
    """float32 n x d in NumPy's own format; rows that have no vector (yet) are NaN. `width`: d, by default the job's.

    `complete`: the reader was told that every index of the range has its outcome. Raises ResultsChanged.
    """
    width = width or int(job.dimensions)
    yield _header(indexes, width)
    async for page in read_pages(database, job, indexes, complete=complete, with_ids=False):
        for rows in _rows(page, width):
            yield rows


async def npy_part(
    database: Database, job: Row[Any], indexes: IndexRange, *, start: int, stop: int, complete: bool, width: int
) -> AsyncIterator[bytes | memoryview]:
    """The bytes start..stop (stop excluded) of npy(); no other rows are read. Raises ResultsChanged."""
    header = _header(indexes, width)
    if start < len(header):
        yield header[start:stop]
    row_bytes = 4 * width
    first_byte, last_byte = max(start - len(header), 0), stop - len(header)
    if last_byte <= 0:
        return
    first_row, stop_row = first_byte // row_bytes, -(-last_byte // row_bytes)
    rows = IndexRange(indexes.start + first_row, indexes.start + stop_row)
    skip, left = first_byte - first_row * row_bytes, last_byte - first_byte
    async for page in read_pages(database, job, rows, complete=complete, with_ids=False):
        for piece in _rows(page, width):
            part = memoryview(piece)[skip : skip + left]
            skip, left = 0, left - len(part)  # a piece is at least a row, and only the first row is cut at its begin
            yield part


def npy_bytes(job: Row[Any], indexes: IndexRange, *, width: int | None = None) -> int:
    """Length of npy() in bytes."""
    width = width or int(job.dimensions)
    return len(_header(indexes, width)) + len(indexes) * width * 4


def _header(indexes: IndexRange, width: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (len(indexes), width)}
    )
    return header.getvalue()


def _rows(page: Page, width: int) -> Iterator[bytes | memoryview]:
    """The rows of a page, of a page without vectors in parts."""
    count = page.stop - page.start
    if len(page.blocks) == 1 and len(page.blocks[0][1]) == count:
        yield memoryview(page.blocks[0][1]).cast("B")  # type: ignore[arg-type]
        return
    rows_at_once = count if page.blocks else max(1, PAGE_BYTES // (4 * width))
    for low in range(0, count, rows_at_once):
        matrix = np.full((min(rows_at_once, count - low), width), np.nan, dtype="<f4")
        for first, rows in page.blocks:
            matrix[first - page.start : first - page.start + len(rows)] = rows
        yield matrix.tobytes()
