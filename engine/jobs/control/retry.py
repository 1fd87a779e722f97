"""Retry: the failed inputs of a finished job are processed again, in the same job.

The plan is read one shard at a time, without locks, because a finished job does not change. One transaction then
applies it, unless the job has changed since. So a crash leaves the job either untouched or fully reopened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Row, bindparam, delete, null, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.job_store import JobStore
from engine.jobs.allowed_actions import action_conflict
from engine.jobs.control.batch_of_job import queue_output_again, reopen_batch
from engine.jobs.control.pause_resume import resumed_columns
from engine.jobs.leasing import duplicate_codec
from engine.jobs.leasing.claim import decode_bitmap
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording import refused_inputs
from engine.jobs.recording.completion import count_error
from engine.jobs.row_locks import MAX_LOCKED_ROWS, lock_shards
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.storage.database import Database
from models.base import db_now
from models.errors import Conflict
from models.job import MAX_WORKER_CRASHES, Job, JobInputError, JobStatus, Shard, ShardInputs, ShardState

RETRYABLE_STATUSES = (JobStatus.COMPLETED_WITH_ERRORS, JobStatus.FAILED)
MAX_TRIES = 3
SHARDS_PER_PAGE = 16
_INPUTS = msgspec.msgpack.Decoder(list[msgspec.Raw])
_NONE = msgspec.msgpack.encode(None)


@dataclass(slots=True)
class _Plan:
    """The changes of a retry. Consecutive failed inputs are kept as ranges."""

    shards: list[dict[str, Any]] = field(default_factory=list)  # ids, and bitmaps without the failed inputs
    runs: list[dict[str, Any]] = field(default_factory=list)  # first and last index of consecutive failures
    reopened: int = 0
    final_errors: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # error summary of the inputs that are not retried


async def retry(store: JobStore, project: str, job_id: str, *, dispatcher: Dispatcher) -> None:
    """Reopen every failed input whose text is stored: all except those that were refused on arrival.

    Raises JobNotFound; Conflict when the job has not ended, or when no input can be retried.
    """
    for _ in range(MAX_TRIES):
        job = await get_job(store, project, job_id)
        _check(job)
        plan = await _plan(store.database, job)
        if not plan.reopened:
            raise Conflict(
                "Every input that failed was refused when it arrived: trying it again would change nothing. "
                "See GET /v1/embeddings/jobs/{id}/errors, and send those inputs, corrected, as a new job."
            )
        if await _reopen(store, job, plan):
            await dispatcher.dispatch_soon()
            return
    raise Conflict("The job is being changed by other requests: try again in a moment.", should_retry=True)


def _check(job: Row[Any]) -> None:
    if job.status == JobStatus.COMPLETED:
        raise Conflict("Nothing of this job has failed: its results can be read, and there is nothing to retry.")
    if job.status not in RETRYABLE_STATUSES:
        raise action_conflict("retry", job.status)
    if job.total is None or job.completed + job.failed < job.total:
        raise Conflict("The corpus of this job never arrived whole: submit it again.")


async def _plan(database: Database, job: Row[Any]) -> _Plan:
    plan, last_index = _Plan(), -1
    async with database.read() as connection:
        plan.final_errors = {entry["code"]: entry for entry in await refused_inputs.summary(connection, job.id)}
    failed_here = (
        select(JobInputError.index)
        .where(
            JobInputError.job_id == Shard.job_id,
            JobInputError.index >= Shard.first_index,
            JobInputError.index < Shard.first_index + Shard.count,
        )
        .limit(1)
        .correlate(Shard)
        .scalar_subquery()
    )
    while True:
        async with database.read() as connection:
            page = (
                await connection.execute(
                    select(Shard.id, Shard.first_index, Shard.count.label("size"), Shard.outcome_bitmap)
                    .where(Shard.job_id == job.id, Shard.first_index > last_index, failed_here.is_not(None))
                    .order_by(Shard.first_index)
                    .limit(SHARDS_PER_PAGE)
                )
            ).all()
            for shard in page:
                await _plan_shard(connection, job.id, shard, plan)
        if len(page) < SHARDS_PER_PAGE:
            return plan
        last_index = page[-1].first_index


async def _plan_shard(connection: AsyncConnection, job_id: str, shard: Any, plan: _Plan) -> None:
    failures = (
        await connection.execute(
            select(JobInputError.index.label("at"), JobInputError.code, JobInputError.message)
            .where(
                JobInputError.job_id == job_id,
                JobInputError.index >= shard.first_index,
                JobInputError.index < shard.first_index + shard.size,
            )
            .order_by(JobInputError.index)
        )
    ).all()
    stored = (
        await connection.execute(
            select(ShardInputs.inputs, ShardInputs.duplicates).where(ShardInputs.shard_id == shard.id)
        )
    ).one()
    inputs = _INPUTS.decode(stored.inputs)
    duplicates = duplicate_codec.decode(stored.duplicates)
    bits = decode_bitmap(shard.outcome_bitmap, shard.size)
    reopened = 0
    run: dict[str, Any] | None = None
    for row in failures:
        position = row.at - shard.first_index
        if bytes(inputs[position]) == _NONE and position not in duplicates:
            count_error(plan.final_errors, row.at, row.code, row.message)
            run = None
            continue
        bits[position] = False
        reopened += 1
        if run is None:
            run = {"job": job_id, "low": row.at}
            plan.runs.append(run)
        run["high"] = row.at
    if reopened:
        plan.reopened += reopened
        plan.shards.append({"shard": shard.id, "bits": np.packbits(bits).tobytes()})


async def _reopen(store: JobStore, job: Row[Any], plan: _Plan) -> bool:
    """Apply the plan in one transaction. False: the job has changed since it was read."""
    ids = sorted(shard["shard"] for shard in plan.shards)
    values = resumed_columns(store.settings) | {
        "failed": Job.failed - plan.reopened,
        # The value after this statement has lowered `failed`.
        "rate_sample_done": job.completed + job.failed - plan.reopened,
        "prev_rate_sample_done": job.completed + job.failed - plan.reopened,
        "open_shards": len(ids),
        "error_summary": list(plan.final_errors.values()),
    }
    async with store.database.write() as connection:
        if job.batch_id is not None:
            await queue_output_again(connection, job)
        locked = 0
        for low in range(0, len(ids), MAX_LOCKED_ROWS):
            chunk = ids[low : low + MAX_LOCKED_ROWS]
            locked += len(await lock_shards(connection, Shard.id.in_(chunk), Shard.state == ShardState.DONE))
        moved = await connection.execute(
            update(Job)
            .where(
                Job.id == job.id,
                Job.status == job.status,
                Job.version == job.version,
                Job.open_shards == 0,
                Job.deleted_at.is_(None),
            )
            .values(values)
        )
        if not moved.rowcount or locked < len(ids):
            await connection.rollback()
            return False
        if job.batch_id is not None:
            await reopen_batch(connection, job.id)
        await connection.execute(_DELETE_ERRORS, plan.runs)
        await connection.execute(_REQUEUE, plan.shards)
    return True


_DELETE_ERRORS = delete(JobInputError).where(
    JobInputError.job_id == bindparam("job"), JobInputError.index.between(bindparam("low"), bindparam("high"))
)
# A higher fence: an earlier worker's vectors are still recorded, its failures are not.
_REQUEUE = (
    update(Shard)
    .where(Shard.id == bindparam("shard"))
    .values(
        outcome_bitmap=bindparam("bits"),
        state=ShardState.QUEUED,
        attempt=0,
        worker_crashes=0,
        crash_limit=MAX_WORKER_CRASHES,
        solo_baseline=null(),
        blocked_by=None,
        fence=Shard.fence + 1,
        lease_until=None,
        worker=None,
        next_run_at=db_now(),
        last_error=None,
        reserved_usd=None,
    )
)
