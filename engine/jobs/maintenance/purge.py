"""Purge: removes deleted and expired jobs in small steps, so that each step holds its locks only briefly."""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import and_, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.job_store import JobStore
from engine.jobs.control.batch_of_job import disown_outputs_of
from engine.jobs.reading.read_leases import UNREAD
from engine.jobs.row_locks import lock_jobs, lock_shards
from models.base import db_now
from models.job import (
    FINISHED,
    AmbiguousCall,
    IdempotencyKey,
    Job,
    JobInputError,
    RefusedInputs,
    Shard,
    ShardInputs,
    TruncatedInputs,
    VectorBlock,
)
from models.outage import RouteOutage
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.sweep")

# Longest time per round of the sweep.
ROUND_S = 0.5
# Rows per step, by their size: a block of vectors is megabytes.
STEP_BLOCKS = 16
STEP_SHARDS = 100
STEP_ROWS = 2000
STEP_JOBS = 100
WORKER_RETENTION_S = 3600.0
OUTAGE_RETENTION_S = 3600.0

DELETED = and_(Job.deleted_at.is_not(None), Job.status.in_(FINISHED), UNREAD)
EXPIRED = and_(Job.expires_at < db_now(), Job.status.in_(FINISHED), Job.deleted_at.is_(None), UNREAD)
EXPIRED_KEY = IdempotencyKey.expires_at < db_now()
STALE_WORKER = WorkerProcess.seen_at < db_now() - WORKER_RETENTION_S
# Every process that calls the route moves this instant ahead, whatever its configuration file. Without the row, the
# next call finds out by itself.
STALE_OUTAGE = RouteOutage.next_attempt_at < db_now() - OUTAGE_RETENTION_S


async def purge(store: JobStore) -> None:
    """Remove deleted and expired jobs that are not being read, and old keys, workers, outages and calls, for ROUND_S.

    Raises StorageUnavailable.
    """
    until = time.monotonic() + ROUND_S
    oldest_s = store.settings.ambiguous_retention_days * 86400.0
    async with store.database.write() as connection:
        limit = select(Job.id).where(EXPIRED).order_by(Job.expires_at).limit(STEP_ROWS)
        expired = await lock_jobs(connection, Job.id.in_((await connection.execute(limit)).scalars().all()), EXPIRED)
        await connection.execute(update(Job).where(Job.id.in_(expired)).values(deleted_at=db_now()))
        # A key of a removed job would otherwise be answered with 404 until it expires.
        await connection.execute(delete(IdempotencyKey).where(IdempotencyKey.job_id.in_(expired)))
        key = tuple_(IdempotencyKey.project, IdempotencyKey.key)
        expired_keys = select(IdempotencyKey.project, IdempotencyKey.key).where(EXPIRED_KEY).limit(STEP_ROWS)
        await connection.execute(delete(IdempotencyKey).where(key.in_(expired_keys)))
        await connection.execute(delete(WorkerProcess).where(STALE_WORKER))
        await connection.execute(delete(RouteOutage).where(STALE_OUTAGE))
        old_calls = select(AmbiguousCall.id).where(AmbiguousCall.at < db_now() - oldest_s).limit(STEP_ROWS)
        await connection.execute(delete(AmbiguousCall).where(AmbiguousCall.id.in_(old_calls)))
    more = True
    while more and time.monotonic() < until:
        async with store.database.write() as connection:
            more = await _remove_step(connection)


async def _remove_step(connection: AsyncConnection) -> bool:
    """One step; False when nothing is left. The vectors of a job are removed first, the job's row last."""
    found = await connection.execute(select(Job.id).where(DELETED).order_by(Job.deleted_at).limit(STEP_JOBS))
    deleted_jobs = list(found.scalars())
    if not deleted_jobs:
        return False
    steps: tuple[tuple[Any, Any, int], ...] = (
        (VectorBlock, VectorBlock.first_index, STEP_BLOCKS),
        (JobInputError, JobInputError.index, STEP_ROWS),
        (RefusedInputs, RefusedInputs.first_index, STEP_ROWS),
        (TruncatedInputs, TruncatedInputs.id, STEP_ROWS),
    )
    for table, column, limit in steps:
        keys = select(table.job_id, column).where(table.job_id.in_(deleted_jobs)).limit(limit)
        removed = await connection.execute(delete(table).where(tuple_(table.job_id, column).in_(keys)))
        if removed.rowcount == limit:
            return True
    shards = await lock_shards(connection, Shard.job_id.in_(deleted_jobs), limit=STEP_SHARDS)
    await connection.execute(delete(ShardInputs).where(ShardInputs.shard_id.in_(shards)))
    await connection.execute(delete(Shard).where(Shard.id.in_(shards)))
    if len(shards) < STEP_SHARDS:
        emptied = await lock_jobs(connection, Job.id.in_(deleted_jobs))
        await disown_outputs_of(connection, emptied)
        await connection.execute(delete(Job).where(Job.id.in_(emptied)))
        log.info("deleted jobs were removed", extra={"count": len(deleted_jobs)})
    return True
