"""Ending before the end: cancel, fail, delete. Finished work is kept and stays readable, until it is deleted."""

from __future__ import annotations

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.allowed_actions import action_conflict
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.completion import end_columns, final_status
from engine.jobs.row_locks import lock_shards
from engine.runtime import Runtime
from models.base import db_now
from models.job import FINISHED, LEGAL_MOVES, OPEN_STATES, IdempotencyKey, Job, JobStatus, Shard, ShardState


async def cancel(runtime: Runtime, project: str, job_id: str) -> None:
    """Stop a job: no new upstream calls; what is under way lands. Idempotent while it is cancelling or cancelled.

    Raises JobNotFound, or Conflict when the job has finished in another way.
    """
    row = await get_job(runtime, project, job_id)
    if row.status in (JobStatus.CANCELLED, JobStatus.CANCELLING):
        return
    if row.status in FINISHED:
        raise action_conflict("cancel", row.status)
    if not await terminate(runtime, job_id, JobStatus.CANCELLED):
        row = await get_job(runtime, project, job_id)
        if row.status not in (JobStatus.CANCELLED, JobStatus.CANCELLING):
            raise action_conflict("cancel", row.status)


async def terminate(runtime: Runtime, job_id: str, status: JobStatus, code: str = "", message: str = "") -> bool:
    """End a job: FAILED or EXPIRED at once, CANCELLED by way of CANCELLING while workers hold shards of it.

    One whose inputs all have an outcome does not expire: it ends by those. False: it had ended.
    """
    async with runtime.database.write() as connection:
        job = (
            await connection.execute(
                select(Job.error_summary, Job.warnings, Job.total, Job.ingested, Job.completed, Job.failed)
                .where(Job.id == job_id)
                .with_for_update(key_share=True)
            )
        ).one_or_none()
        if job is None:
            return False
        open_count = max(0, (job.ingested if job.total is None else job.total) - job.completed - job.failed)
        if status is JobStatus.EXPIRED and job.total and not open_count:
            status, code = final_status(job.completed, job.failed), ""
        sources = [state for state, targets in LEGAL_MOVES.items() if status in targets]
        values: dict[str, object] = {
            "status": JobStatus.CANCELLING if status is JobStatus.CANCELLED else status,
            "upload_lease_until": None,
            "waiting_on": None,
            "next_attempt_at": None,
            "version": Job.version + 1,
        }
        if status is not JobStatus.CANCELLED:
            values |= end_columns(runtime.settings)
        if code and status is JobStatus.EXPIRED:  # what is left of it has no error: errors count inputs that failed
            values["warnings"] = [*job.warnings, {"code": code, "message": message}]
        elif code:
            entry = {"code": code, "count": 0, "example_index": None, "message": message}
            values["error_summary"] = [*(job.error_summary or []), entry]
        moved = await connection.execute(
            update(Job).where(Job.id == job_id, Job.status.in_(sources), Job.deleted_at.is_(None)).values(values)
        )
        if not moved.rowcount:
            return False
    await cancel_idle_shards(runtime, job_id)
    return True


async def cancel_idle_shards(runtime: Runtime, job_id: str) -> None:
    """Cancel the shards that nobody holds, where the job has ended; a cancelling job that has none left is cancelled.

    A transaction of its own, in the order shards then job, as every writer of both takes them. A crash before it leaves
    the job cancelling, which the sweep brings to its end by this same call.
    """
    async with runtime.database.write() as connection:
        cancelled, last = 0, ""
        idle = and_(Shard.job_id == job_id, Shard.state.in_((ShardState.QUEUED, ShardState.ANNOUNCED)))
        while ids := await lock_shards(connection, idle, Shard.id > last):
            # Asked for once they are locked: a job may have been resumed or retried since somebody thought it over.
            if not last and not await _has_ended(connection, job_id):
                return
            await connection.execute(
                update(Shard)
                .where(Shard.id.in_(ids))
                .values(state=ShardState.CANCELLED, announced_at=None, reserved_usd=None)
            )
            cancelled, last = cancelled + len(ids), ids[-1]
        open_count = (
            await connection.execute(
                select(func.count()).select_from(Shard).where(Shard.job_id == job_id, Shard.state.in_(OPEN_STATES))
            )
        ).scalar_one()
        if cancelled:
            await connection.execute(
                update(Job).where(Job.id == job_id).values(open_shards=Job.open_shards - cancelled)
            )
        if not open_count:
            await connection.execute(
                update(Job)
                .where(Job.id == job_id, Job.status == JobStatus.CANCELLING)
                .values(status=JobStatus.CANCELLED, version=Job.version + 1, **end_columns(runtime.settings))
            )


async def _has_ended(connection: AsyncConnection, job_id: str) -> bool:
    status = (await connection.execute(select(Job.status).where(Job.id == job_id))).scalar_one_or_none()
    return status == JobStatus.CANCELLING or status in FINISHED


async def cancel_idle_shards_if_ended(runtime: Runtime, job_id: str) -> None:
    """Close what a worker gave back to a job that had ended meanwhile; nearly always there is no write."""
    async with runtime.database.read() as connection:
        has_ended = await _has_ended(connection, job_id)
    if has_ended:
        await cancel_idle_shards(runtime, job_id)


async def drop_claim(runtime: Runtime, shard: ClaimedShard) -> None:
    """A worker lets go of a shard whose job wants no more of it: for good, or, where the job is paused, for now."""
    async with runtime.database.write() as connection:
        owned = await lock_shards(
            connection, Shard.id == shard.shard_id, Shard.fence == shard.fence, Shard.state == ShardState.RUNNING
        )
        has_ended = await _has_ended(connection, shard.job_id)
        if owned and has_ended:
            await connection.execute(
                update(Shard)
                .where(Shard.id.in_(owned))
                .values(state=ShardState.CANCELLED, lease_until=None, worker=None, reserved_usd=None)
            )
            await connection.execute(update(Job).where(Job.id == shard.job_id).values(open_shards=Job.open_shards - 1))
    if owned and not has_ended:
        await claims.release(
            runtime, shard, delay_s=0.0, counts_as_attempt=False, reason="the job was paused", waiting_on=None
        )
    await cancel_idle_shards(runtime, shard.job_id)


async def delete_job(runtime: Runtime, project: str, job_id: str) -> None:
    """Delete a job and its results; a running one is cancelled first. Its ledger rows stay. Raises JobNotFound.

    The job is gone for every caller at once; the sweep then removes its rows in small steps.
    """
    await get_job(runtime, project, job_id)
    while not await soft_delete(runtime, job_id):
        # It runs; or it runs again, for somebody resumed or retried it since it was looked at.
        if not await terminate(runtime, job_id, JobStatus.CANCELLED):
            await get_job(runtime, project, job_id)


async def soft_delete(runtime: Runtime, job_id: str) -> bool:
    """Hide a job that has ended, or is ending, and free its Idempotency-Key. False: it is not."""
    async with runtime.database.write() as connection:
        hidden = await connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.status.in_((*FINISHED, JobStatus.CANCELLING)))
            .values(deleted_at=func.coalesce(Job.deleted_at, db_now()))
        )
        if hidden.rowcount:
            await connection.execute(delete(IdempotencyKey).where(IdempotencyKey.job_id == job_id))
    return bool(hidden.rowcount)
