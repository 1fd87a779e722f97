"""Results: vectors of a job as lines, in index order, page by page, in bounded memory, also while it runs.

As npy: npy.py; as Parquet or Arrow: tables.py.

The generators check that every index with an outcome yields one. Where rows were removed meanwhile (a purge, a retry)
they raise ResultsChanged, so that the connection is closed and no client takes a part for the whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import orjson
import pybase64
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.reading.npy import npy, npy_bytes, npy_part
from engine.jobs.reading.result_pages import (
    ERROR_COLUMNS,
    PAGE_BYTES,
    IndexRange,
    Page,
    decode_ids,
    error_of,
    has_all_outcomes,
    read_pages,
    shard_with,
)
from engine.jobs.recording import refused_inputs
from engine.process.work_threads import WorkThreads
from engine.storage.database import Database
from models.errors import ResultsChanged
from models.job import JobInputError, Shard, ShardInputs

# Each piece that is passed to the socket has at most PAGE_BYTES, vectors as text too.
TEXT_BYTES_A_NUMBER = 12
ERRORS_PER_PAGE = 2000
Line = Callable[[int, str | None, Any], bytes]


async def is_complete(database: Database, job: Row[Any], indexes: IndexRange, requested_stop: int | None) -> bool:
    """True when every index of the requested range has its outcome. Raises ResultsChanged."""
    if job.total is None and (requested_stop is None or requested_stop > indexes.stop):
        return False
    if job.total is not None and job.completed + job.failed == job.total:
        return True
    return await has_all_outcomes(database, job, indexes)


async def ndjson(
    database: Database, work: WorkThreads, job: Row[Any], indexes: IndexRange, encoding: str, *, complete: bool = False
) -> AsyncIterator[bytes]:
    """A line for each index that has an outcome: `{"index","id","embedding"}` or `{"index","id","error"}`.

    `complete`: the reader was told that every index of the range has its outcome. Raises ResultsChanged.
    """
    line = _base64_line if encoding == "base64" else _float_line
    async for page in read_pages(database, job, indexes, complete=complete, with_ids=True):
        if not (page.blocks or page.shard.errors):
            continue
        vectors_at_once = max(1, PAGE_BYTES // (TEXT_BYTES_A_NUMBER * page.shard.width))
        step = vectors_at_once if page.blocks else ERRORS_PER_PAGE
        for low in range(page.start, page.stop, step):
            # Formatting thousands of numbers would block the event loop, so a work thread does it.
            part = partial(_lines, page, low, min(low + step, page.stop), line)
            if text := await work.run(job.project, part):
                yield text


def _lines(page: Page, low: int, high: int, line: Line) -> bytes:
    """The lines of the indexes low..high (high excluded) of a page."""
    shard, errors = page.shard, page.shard.errors or {}
    lines = {i: _error_line(i, shard.caller_id(i), errors[i]) for i in range(low, high) if i in errors}
    for first, rows in page.blocks:
        start = max(first, low)
        for index, row in enumerate(rows[start - first : max(high - first, 0)], start):
            text = line(index, shard.caller_id(index), row)
            lines[index] = text[:-2] + b',"truncated":true}\n' if index in shard.truncated else text
    return b"".join([lines[index] for index in sorted(lines)])


async def errors_ndjson(database: Database, work: WorkThreads, job: Row[Any]) -> AsyncIterator[bytes]:
    """A line for each failed input, in index order. Raises ResultsChanged when some were removed meanwhile."""
    last_index, listed = -1, 0
    while True:
        async with database.read() as connection:
            page = await _failures_after(connection, job.id, last_index)
            if not page:
                break
            ids = await _ids_between(connection, job.id, page[0][0], page[-1][0] + 1)
        yield await work.run(job.project, partial(_error_lines, page, ids))
        last_index, listed = page[-1][0], listed + len(page)
    if listed < job.failed:
        raise ResultsChanged


async def _failures_after(
    connection: AsyncConnection, job_id: str, last_index: int
) -> list[tuple[int, dict[str, Any]]]:
    """The next failures after an index, in order: of processed inputs, and of those refused on arrival."""
    rows = (
        await connection.execute(
            select(*ERROR_COLUMNS)
            .where(JobInputError.job_id == job_id, JobInputError.index > last_index)
            .order_by(JobInputError.index)
            .limit(ERRORS_PER_PAGE)
        )
    ).all()
    refused = await refused_inputs.next_after(connection, job_id, last_index, ERRORS_PER_PAGE)
    found = [(int(row.at), error_of(row)) for row in rows] + [(each.index, error_of(each)) for each in refused]
    return sorted(found, key=lambda each: each[0])[:ERRORS_PER_PAGE]


async def _ids_between(connection: AsyncConnection, job_id: str, start: int, stop: int) -> Callable[[int], str | None]:
    rows = (
        await connection.execute(
            select(Shard.first_index, Shard.count.label("size"), ShardInputs.ids)
            .join(ShardInputs, ShardInputs.shard_id == Shard.id)
            .where(
                Shard.job_id == job_id,
                Shard.first_index >= shard_with(job_id, start),
                Shard.first_index < stop,
                ShardInputs.ids.is_not(None),
            )
        )
    ).all()
    pages: list[tuple[int, int, list[str | None]]] = [(row.first_index, row.size, decode_ids(row.ids)) for row in rows]

    def caller_id(index: int) -> str | None:
        for first, count, ids in pages:
            if first <= index < first + count:
                return ids[index - first]
        return None

    return caller_id


def _float_line(index: int, caller_id: str | None, row: Any) -> bytes:
    return orjson.dumps(
        {"index": index, "id": caller_id, "embedding": row},
        option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
    )


def _base64_line(index: int, caller_id: str | None, row: Any) -> bytes:
    return b'{"index":%d,"id":%b,"embedding":"%b"}\n' % (index, orjson.dumps(caller_id), pybase64.b64encode(row))


def _error_lines(page: list[tuple[int, dict[str, Any]]], ids: Callable[[int], str | None]) -> bytes:
    return b"".join(_error_line(index, ids(index), error) for index, error in page)


def _error_line(index: int, caller_id: str | None, error: dict[str, Any]) -> bytes:
    return orjson.dumps({"index": index, "id": caller_id, "error": error}) + b"\n"


__all__ = ["IndexRange", "errors_ndjson", "is_complete", "ndjson", "npy", "npy_bytes", "npy_part"]
