"""Results as a table, in index order and bounded memory, while the job runs too: Parquet or an Arrow file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Row

from engine.jobs.reading.result_pages import PAGE_BYTES, IndexRange, Page, PagePart, read_pages
from engine.process.work_threads import WorkThreads
from engine.storage.database import Database
from models.errors import InvalidInput

if TYPE_CHECKING:
    from engine.jobs.reading.table_writers import TableFormat, TableWriter

MAX_GROUP_ROWS = 16_384  # ids and messages need memory too


def open_table(format: str, width: int) -> TableWriter:
    """The writer of `parquet` or `arrow`. Raises InvalidInput without pyarrow."""
    try:
        from engine.jobs.reading.table_writers import TableWriter
    except ImportError as error:
        raise InvalidInput(
            f"This server cannot write {format}: the package pyarrow is not installed. Send format=npy "
            "or format=ndjson, or ask the operator to install the extra 'parquet'.",
            param="format",
            code="unsupported_format",
        ) from error
    return TableWriter(cast("TableFormat", format), width)


async def table(
    database: Database,
    work: WorkThreads,
    job: Row[Any],
    indexes: IndexRange,
    writer: TableWriter,
    *,
    width: int,
    complete: bool = False,
) -> AsyncIterator[bytes | memoryview]:
    """A row for each index that has an outcome, as ndjson() has a line.

    `complete`: the reader was told that every index of the range has its outcome. Raises ResultsChanged.
    """
    group: list[PagePart] = []
    max_rows = min(MAX_GROUP_ROWS, max(1, writer.group_bytes // (4 * width)))
    rows = 0
    async for page in read_pages(database, job, indexes, complete=complete, with_ids=True):
        for part in _parts(page, min(max_rows, max(1, PAGE_BYTES // (4 * width)))):
            if group and rows + part.high - part.low > max_rows:
                for piece in await work.run(job.project, partial(writer.write, group)):
                    yield piece
                group, rows = [], 0
            group.append(part)
            rows += part.high - part.low
    for last in (partial(writer.write, group), writer.end):
        for piece in await work.run(job.project, last):
            yield piece


def _parts(page: Page, rows_at_once: int) -> Iterator[PagePart]:
    """The page in parts; none of a page that has no outcome."""
    if page.blocks or page.shard.errors:
        for low in range(page.start, page.stop, rows_at_once):
            yield PagePart(page, low, min(low + rows_at_once, page.stop))
