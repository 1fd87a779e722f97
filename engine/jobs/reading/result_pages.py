"""Pages of results: the outcomes of consecutive indexes, bounded in bytes, each page read with one connection.

A page needs one statement for its vectors, and one more when it begins a shard that was not read with those before.
Errors are read only where the shard's bitmap says that there is an outcome, and no vector is found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sqlalchemy import BigInteger, Integer, LargeBinary, Row, and_, bindparam, case, cast, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.leasing.claim import Bitmap, decode_bitmap
from engine.jobs.recording import refused_inputs, truncated_inputs
from engine.storage import vectors
from engine.storage.database import Database
from models.batch import JobVariant
from models.embedding import Matrix
from models.errors import ResultsChanged
from models.job import FINISHED, JobInputError, Shard, ShardInputs, VectorBlock

# Bytes of vectors that are read from the database at a time. There may be many slow readers, and each holds so many.
PAGE_BYTES = 512 * 1024
SHARDS_PER_QUERY = 16
# A retry may remove outcomes between two statements of a page; the shard is then read again.
READ_TRIES = 3
ERROR_COLUMNS = (JobInputError.index.label("at"), JobInputError.code, JobInputError.message, JobInputError.retryable)
decode_ids = msgspec.msgpack.Decoder(list[str | None]).decode


@dataclass(frozen=True, slots=True)
class IndexRange:
    """Indexes start..stop (stop excluded) of a job, limited to the stored part of its corpus."""

    start: int
    stop: int

    @classmethod
    def of(cls, job: Row[Any], start: int | None, stop: int | None, *, stored: int | None = None) -> IndexRange:
        """`stored`: indexes from 0 on that are stored; by default as many as the job has inputs."""
        known = job.ingested if stored is None else stored
        end = min(known if stop is None else stop, known)
        first = min(start or 0, end)
        return cls(first, max(first, end))

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class ShardOutcomes:
    """What a shard's row says of its inputs, and what its pages have found besides, by index."""

    first_index: int
    stop: int
    without_error: Bitmap  # inputs with an outcome that is not known to be an error
    width: int  # of its vectors
    ids: list[str | None] | None = None
    errors: dict[int, dict[str, Any]] | None = None  # null until a page misses a vector
    truncated: Set[int] = frozenset()

    def caller_id(self, index: int) -> str | None:
        """The caller's id of an input."""
        return self.ids[index - self.first_index] if self.ids else None


@dataclass(frozen=True, slots=True)
class Page:
    """The outcomes of the indexes start..stop (stop excluded), all of one shard."""

    start: int
    stop: int
    blocks: Sequence[tuple[int, Matrix]]  # first index and vectors, shape (n, shard.width), in order
    shard: ShardOutcomes


class PagePart(NamedTuple):
    """The indexes low..high (high excluded) of a page."""

    page: Page
    low: int
    high: int


async def read_pages(
    database: Database,
    job: Row[Any],
    indexes: IndexRange,
    *,
    complete: bool,
    with_ids: bool,
    page_bytes: int = PAGE_BYTES,
) -> AsyncIterator[Page]:
    """The pages of an index range, of `page_bytes` each, in order. No connection is held between two pages.

    `complete`: each index of the range must have its outcome. `with_ids`: with caller ids and truncated inputs.

    Raises ResultsChanged when an outcome that was stored is gone, StorageUnavailable.
    """
    shards: deque[ShardOutcomes] = deque()
    index = indexes.start
    while index < indexes.stop:
        async with database.read() as connection:
            for _ in range(READ_TRIES):
                if not shards:
                    shards.extend(await _read_shards(connection, job, index, indexes.stop, with_ids=with_ids))
                    if complete:
                        for shard in shards:
                            shard.without_error[:] = True
                page = await _read_page(connection, job, shards[0], index, indexes.stop, page_bytes)
                if page is not None:
                    break
                shards.clear()
            else:
                raise ResultsChanged
        yield page
        index = page.stop
        if index >= shards[0].stop:
            shards.popleft()


async def has_all_outcomes(database: Database, job: Row[Any], indexes: IndexRange) -> bool:
    """True when each index of the range has its outcome. Raises ResultsChanged, StorageUnavailable."""
    index = indexes.start
    while index < indexes.stop:
        async with database.read() as connection:
            shards = await _read_shards(connection, job, index, indexes.stop, with_ids=False)
        for shard in shards:
            if not shard.without_error[index - shard.first_index : indexes.stop - shard.first_index].all():
                return False
            index = shard.stop
    return True


def shard_with(job_id: str, index: int) -> Any:
    """The first index of the shard that holds this index, as a subquery."""
    shards = Shard.__table__.alias("earlier")
    found = select(func.max(shards.c.first_index)).where(shards.c.job_id == job_id, shards.c.first_index <= index)
    return found.scalar_subquery()


def _width_of(job: Row[Any]) -> Any:
    """The width of a shard's vectors: of its variant, where the job runs a batch."""
    width = job.dimensions
    return (literal(width) if job.batch_id is None else func.coalesce(JobVariant.dimensions, width)).label("width")


async def _read_shards(
    connection: AsyncConnection, job: Row[Any], index: int, stop: int, *, with_ids: bool
) -> list[ShardOutcomes]:
    """The shard that holds `index` and those that follow; only that one `with_ids`. Raises ResultsChanged."""
    statement = (
        select(Shard.first_index, Shard.count.label("size"), Shard.outcome_bitmap, _width_of(job))
        .where(Shard.job_id == job.id, Shard.first_index >= shard_with(job.id, index), Shard.first_index < stop)
        .order_by(Shard.first_index)
    )
    if job.batch_id is not None:
        of_shard = and_(JobVariant.job_id == Shard.job_id, JobVariant.number == Shard.variant)
        statement = statement.outerjoin(JobVariant, of_shard)
    if with_ids:
        statement = statement.add_columns(ShardInputs.ids).join(ShardInputs, ShardInputs.shard_id == Shard.id)
    shards: list[ShardOutcomes] = []
    following = index
    for row in (await connection.execute(statement.limit(1 if with_ids else SHARDS_PER_QUERY))).all():
        if row.first_index > following:
            raise ResultsChanged
        following = row.first_index + row.size
        bits = decode_bitmap(row.outcome_bitmap, row.size)
        shards.append(ShardOutcomes(row.first_index, following, bits, row.width))
        if with_ids and row.ids:
            shards[0].ids = decode_ids(row.ids)
    if following == index:
        raise ResultsChanged
    if with_ids and (job.truncated or job.status not in FINISHED):
        shards[0].truncated = await truncated_inputs.between(connection, job.id, index, min(following, stop))
    return shards


async def _read_page(
    connection: AsyncConnection, job: Row[Any], shard: ShardOutcomes, start: int, stop: int, page_bytes: int
) -> Page | None:
    """The page that begins at `start`; None when an outcome is missing."""
    end = min(stop, shard.stop)
    expected = shard.without_error[start - shard.first_index : end - shard.first_index]
    before_vectors = int(expected.argmax()) if expected.any() else len(expected)
    if before_vectors:
        return Page(start, start + before_vectors, (), shard)
    row_bytes = 4 * shard.width
    page_stop = min(end, start + max(1, page_bytes // row_bytes))
    found = await connection.execute(
        _VECTORS, {"job": job.id, "start": start, "stop": page_stop, "row_bytes": row_bytes}
    )
    blocks = [(row.first, vectors.decode_blob(row.part, shard.width)) for row in found]
    missing = expected[: page_stop - start].copy()
    for first, rows in blocks:
        missing[first - start : first - start + len(rows)] = False
    if missing.any() and shard.errors is None:
        shard.errors = await _read_errors(connection, job.id, start, end)
        at = np.fromiter(shard.errors, dtype=np.int64) - start
        expected[at] = False
        missing[at[at < len(missing)]] = False
    return None if missing.any() else Page(start, page_stop, blocks, shard)


async def _read_errors(connection: AsyncConnection, job_id: str, start: int, stop: int) -> dict[int, dict[str, Any]]:
    within = JobInputError.job_id == job_id, JobInputError.index >= start, JobInputError.index < stop
    rows = await connection.execute(select(*ERROR_COLUMNS).where(*within))
    refused = await refused_inputs.between(connection, job_id, start, stop)
    return {row.at: error_of(row) for row in rows} | {each.index: error_of(each) for each in refused}


def error_of(row: Any) -> dict[str, Any]:
    """The error of an input as callers see it, from a row of errors or a Refusal."""
    return {"code": row.code, "message": row.message, "retryable": bool(row.retryable)}


def _vectors_statement() -> Any:
    """The vectors of the indexes start..stop, block by block, without those of a block that are outside."""
    start, stop = bindparam("start", type_=BigInteger), bindparam("stop", type_=BigInteger)
    row_bytes = bindparam("row_bytes", type_=Integer)
    blocks = VectorBlock.__table__.alias("earlier")
    containing = (
        select(func.max(blocks.c.first_index))
        .where(blocks.c.job_id == bindparam("job"), blocks.c.first_index <= start)
        .scalar_subquery()
    )
    first = case((VectorBlock.first_index < start, start), else_=VectorBlock.first_index)
    part = func.substr(
        VectorBlock.data,
        cast((first - VectorBlock.first_index) * row_bytes + 1, Integer),
        cast((stop - first) * row_bytes, Integer),
        type_=LargeBinary,
    )
    return (
        select(first.label("first"), part.label("part"))
        .where(
            VectorBlock.job_id == bindparam("job"),
            VectorBlock.first_index >= func.coalesce(containing, start),
            VectorBlock.first_index < stop,
            VectorBlock.first_index + VectorBlock.count > start,
        )
        .order_by(VectorBlock.first_index)
    )


_VECTORS = _vectors_statement()
