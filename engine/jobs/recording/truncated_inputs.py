"""Truncated inputs of a job: stored when they are shortened, counted once they have a vector.

One row per shard for inputs that were shortened on arrival, and one per record for inputs that the provider truncated.
Without truncated inputs nothing is written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.shard_draft import MAX_RUN_INPUTS
from models.base import new_id
from models.embedding import BatchOutcome
from models.job import TruncatedInputs

if TYPE_CHECKING:
    from engine.jobs.leasing.claim import ClaimedShard


def row_of(job_id: str, indexes: Collection[int]) -> dict[str, Any]:
    """The row of truncated_inputs for these indexes, at least one."""
    first, last = min(indexes), max(indexes)
    bits = np.zeros(last - first + 1, dtype=bool)
    bits[np.fromiter(indexes, dtype=np.int64) - first] = True
    mask = np.packbits(bits).tobytes()
    return {"id": new_id("cut"), "job_id": job_id, "first_index": first, "last_index": last, "mask": mask}


async def between(connection: AsyncConnection, job_id: str, start: int, stop: int) -> set[int]:
    """The truncated inputs with indexes start..stop (stop excluded)."""
    rows = await connection.execute(
        select(TruncatedInputs.first_index, TruncatedInputs.last_index, TruncatedInputs.mask).where(
            TruncatedInputs.job_id == job_id,
            TruncatedInputs.first_index > start - MAX_RUN_INPUTS,
            TruncatedInputs.first_index < stop,
            TruncatedInputs.last_index >= start,
        )
    )
    found: set[int] = set()
    for first, last, mask in rows:
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=last - first + 1)
        found.update((np.flatnonzero(bits) + first).tolist())
    return {index for index in found if start <= index < stop}


async def insert_truncated(connection: AsyncConnection, shard: ClaimedShard, outcomes: Sequence[BatchOutcome]) -> int:
    """Store what the provider truncated. Returns how many of the outcomes with a vector are truncated in all."""
    vectors = {index for part in outcomes if part.vectors is not None for index in part.indexes}
    truncated = {index for part in outcomes if part.truncated for index in part.truncated} & vectors
    known: set[int] = set()
    if shard.options.truncate == "end":  # else nothing is truncated on arrival
        known = await between(connection, shard.job_id, shard.first_index, shard.first_index + shard.count)
    if truncated - known:
        await connection.execute(insert(TruncatedInputs).values(row_of(shard.job_id, truncated - known)))
    return len(vectors & (known | truncated))


async def truncated_among(connection: AsyncConnection, job_id: str, indexes: Collection[int]) -> set[int]:
    """Those of the indexes that are stored as truncated."""
    if not indexes:
        return set()
    found: set[int] = set()
    low, high = min(indexes), max(indexes)
    for start in range(low, high + 1, MAX_RUN_INPUTS):
        found |= await between(connection, job_id, start, min(start + MAX_RUN_INPUTS, high + 1))
    return found & set(indexes)
