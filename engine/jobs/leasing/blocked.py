"""Blocked shards: a shard with duplicates is not claimed before the shard with their first occurrences has closed.

The transaction after the one that closes a shard unblocks its dependants. After a crash in between the sweep does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection

from sqlalchemy import and_, select, update

from engine.job_store import JobStore
from engine.jobs.row_locks import lock_jobs, lock_shards
from engine.storage.database import Database
from models.base import db_now
from models.job import OPEN_STATES, Job, Shard, ShardState

_BLOCKER = Shard.__table__.alias("blocker")
_BLOCKER_IS_OPEN = (
    select(_BLOCKER.c.id)
    .where(_BLOCKER.c.id == Shard.blocked_by, _BLOCKER.c.state.in_(OPEN_STATES))
    .correlate(Shard)
    .scalar_subquery()
    .is_not(None)
)
NO_LONGER_BLOCKED = and_(Shard.blocked_by.is_not(None), ~_BLOCKER_IS_OPEN)


async def find_blocker(database: Database, job_id: str, indexes: Collection[int]) -> str | None:
    """The last open shard of the job that contains one of these inputs; it is likely to be done last."""
    ordered = sorted(indexes)
    async with database.read() as connection:
        still_open = await connection.execute(
            select(Shard.id, Shard.first_index, Shard.count.label("size"))
            .where(Shard.job_id == job_id, Shard.state.in_(OPEN_STATES))
            .order_by(Shard.first_index.desc())
        )
        for shard in still_open:
            position = bisect_left(ordered, shard.first_index)
            if position < len(ordered) and ordered[position] < shard.first_index + shard.size:
                return str(shard.id)
    return None


async def unblock_shards(store: JobStore, shard_id: str | None = None) -> int:
    """Unblock the shards that wait for this one; None: for any closed one. Returns how many were unblocked."""
    condition = NO_LONGER_BLOCKED if shard_id is None else Shard.blocked_by == shard_id
    # Nearly always there is none, so no write lock is taken to find out.
    async with store.database.read() as connection:
        if (await connection.execute(select(Shard.id).where(condition).limit(1))).first() is None:
            return 0
    async with store.database.write() as connection:
        unblocked = await lock_shards(connection, condition)
        rows = await connection.execute(
            update(Shard)
            .where(Shard.id.in_(unblocked))
            .values(blocked_by=None, next_run_at=db_now())
            .returning(Shard.job_id, Shard.state)
        )
        job_ids = {row.job_id for row in rows if row.state == ShardState.QUEUED}
        jobs = await lock_jobs(connection, Job.id.in_(sorted(job_ids)), Job.not_before.is_not(None))
        await connection.execute(update(Job).where(Job.id.in_(jobs)).values(not_before=None))
    return len(unblocked)
