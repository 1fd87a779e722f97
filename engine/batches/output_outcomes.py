"""Outcomes of the inputs of a group of lines, read by index ranges: with vectors, or only whether there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import BigInteger, Row, bindparam, func, select

from engine.batches.output_groups import LineGroup
from engine.batches.output_plan import Outcomes
from engine.jobs.leasing.claim import decode_bitmap
from engine.jobs.reading.result_pages import IndexRange, read_pages
from engine.jobs.recording import refused_inputs
from engine.storage.database import Database
from models.job import JobInputError, Shard

# One at a time is in memory: the step of a batch, or one reader of its results.
PAGE_BYTES = 4 * 1024 * 1024
NO_OUTCOME, HAS_VECTOR, HAS_ERROR = 0, 1, 2


async def read_outcomes(database: Database, job: Row[Any], group: LineGroup) -> Outcomes:
    """The vectors and errors of the inputs of a group.

    Raises ResultsChanged when outcomes are removed meanwhile, StorageUnavailable.
    """
    outcomes = Outcomes()
    for first, stop in group.stored_ranges():
        pages = read_pages(database, job, IndexRange(first, stop), complete=False, with_ids=True, page_bytes=PAGE_BYTES)
        async for page in pages:
            for low, rows in page.blocks:
                outcomes.vectors.update(zip(range(low, low + len(rows)), rows, strict=True))
            outcomes.truncated.update(page.shard.truncated)
            for index, error in (page.shard.errors or {}).items():
                if page.start <= index < page.stop:
                    outcomes.errors[index] = error
    return outcomes


async def read_states(database: Database, job: Row[Any], start: int, stop: int) -> npt.NDArray[np.uint8]:
    """For each of the stored indexes start..stop: NO_OUTCOME, HAS_VECTOR or HAS_ERROR. Raises StorageUnavailable."""
    states = np.zeros(stop - start, dtype=np.uint8)
    within = {"job": job.id, "start": start, "stop": stop}
    async with database.read() as connection:
        for first, size, bitmap in await connection.execute(_SHARDS, within):
            bits = decode_bitmap(bitmap, size)[max(start - first, 0) : stop - first]
            low = max(first - start, 0)
            states[low : low + len(bits)] = bits
        if job.failed:
            failed = list((await connection.execute(_ERRORS, within)).scalars())
            failed += [each.index for each in await refused_inputs.between(connection, job.id, start, stop)]
            states[np.asarray(failed, dtype=np.int64) - start] = HAS_ERROR
    return states


def _shards_statement() -> Any:
    """The shards with indexes start..stop."""
    job: Any = bindparam("job")
    start = bindparam("start", type_=BigInteger)
    earlier = Shard.__table__.alias("earlier")
    containing = (
        select(func.max(earlier.c.first_index))
        .where(earlier.c.job_id == job, earlier.c.first_index <= start)
        .scalar_subquery()
    )
    return select(Shard.first_index, Shard.count.label("size"), Shard.outcome_bitmap).where(
        Shard.job_id == job, Shard.first_index >= containing, Shard.first_index < bindparam("stop", type_=BigInteger)
    )


# Built once: each costs more to build than to run.
_SHARDS = _shards_statement()
_ERRORS = select(JobInputError.index).where(
    JobInputError.job_id == bindparam("job"),
    JobInputError.index >= bindparam("start", type_=BigInteger),
    JobInputError.index < bindparam("stop", type_=BigInteger),
)
