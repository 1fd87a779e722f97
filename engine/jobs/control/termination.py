"""Termination of a job before all inputs are done: cancel, fail, expire, delete. Results stay readable until then."""

from __future__ import annotations

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.job_store import JobStore
from engine.jobs.allowed_actions import action_conflict
from engine.jobs.control.batch_of_job import delete_files_of, mark_cancelling
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.completion import end_columns, final_status
from engine.jobs.row_locks import lock_shards
from engine.webhooks.job_events import record_job_event
from models.base import db_now
from models.job import FINISHED, LEGAL_MOVES, OPEN_STATES, IdempotencyKey, Job, JobStatus, Shard, ShardState


async def cancel(store: JobStore, project: str, job_id: str) -> None:
    """Stop a job: no new upstream calls; results of calls in flight are recorded. Idempotent for a cancelled job.

    Raises JobNotFound, or Conflict when the job has ended in another status.
    """
    row = await get_job(store, project, job_id)
    if row.status in (JobStatus.CANCELLED, JobStatus.CANCELLING):
        return
    if row.status in FINISHED:
        raise action_conflict("cancel", row.status)
    if not await terminate(store, job_id, JobStatus.CANCELLED):
        row = await get_job(store, project, job_id)
        if row.status not in (JobStatus.CANCELLED, JobStatus.CANCELLING):
            raise action_conflict("cancel", row.status)


async def terminate(store: JobStore, job_id: str, status: JobStatus, code: str = "", message: str = "") -> bool:
    """End a job: FAILED or EXPIRED at once, CANCELLED by way of CANCELLING while shards are running.

    A job whose inputs all have an outcome does not expire: its counters decide the status. False: it had ended before.
    """
    async with store.database.write() as connection:
        job = (
            await connection.execute(
                select(
                    Job.error_summary,
                    Job.warnings,
                    Job.total,
                    Job.ingested,
                    Job.completed,
                    Job.failed,
                    Job.batch_id,
                )
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
            values |= end_columns(store.settings)
        if code and status is JobStatus.EXPIRED:  # a warning, not an error: errors count failed inputs
            values["warnings"] = [*job.warnings, {"code": code, "message": message}]
        elif code:
            entry = {"code": code, "count": 0, "example_index": None, "message": message}
            values["error_summary"] = [*(job.error_summary or []), entry]
        moved = await connection.execute(
            update(Job).where(Job.id == job_id, Job.status.in_(sources), Job.deleted_at.is_(None)).values(values)
        )
        if not moved.rowcount:
            return False
        if status is JobStatus.CANCELLED and job.batch_id is not None:
            await mark_cancelling(connection, job_id)
        if status is not JobStatus.CANCELLED:
            await record_job_event(connection, job_id)
    await cancel_idle_shards(store, job_id)
    return True


async def cancel_idle_shards(store: JobStore, job_id: str) -> None:
    """Cancel the shards of an ended job that no worker has leased. A cancelling job without open shards is cancelled.

    It has a transaction of its own, because shards are locked before their job (engine/jobs/row_locks.py). After a
    crash before it the job stays cancelling, and the sweep calls this function again.
    """
    async with store.database.write() as connection:
        cancelled, last = 0, ""
        idle = and_(Shard.job_id == job_id, Shard.state == ShardState.QUEUED)
        while ids := await lock_shards(connection, idle, Shard.id > last):
            # Checked under the locks: the job may have been resumed or retried meanwhile.
            if not last and not await _has_ended(connection, job_id):
                return
            await connection.execute(
                update(Shard).where(Shard.id.in_(ids)).values(state=ShardState.CANCELLED, reserved_usd=None)
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
            ended = await connection.execute(
                update(Job)
                .where(Job.id == job_id, Job.status == JobStatus.CANCELLING)
                .values(status=JobStatus.CANCELLED, version=Job.version + 1, **end_columns(store.settings))
            )
            if ended.rowcount:
                await record_job_event(connection, job_id)


async def _has_ended(connection: AsyncConnection, job_id: str) -> bool:
    status = (await connection.execute(select(Job.status).where(Job.id == job_id))).scalar_one_or_none()
    return status == JobStatus.CANCELLING or status in FINISHED


async def cancel_idle_shards_if_ended(store: JobStore, job_id: str) -> None:
    """Cancel the shards that a worker has released to a job that ended meanwhile. Writes only where there is one."""
    async with store.database.read() as connection:
        has_ended = await _has_ended(connection, job_id)
    if has_ended:
        await cancel_idle_shards(store, job_id)


async def drop_claim(store: JobStore, shard: ClaimedShard) -> None:
    """Release the shard of a job that has ended or is paused: cancelled, or queued until the job is resumed."""
    async with store.database.write() as connection:
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
            store, shard, delay_s=0.0, counts_as_attempt=False, reason="the job was paused", waiting_on=None
        )
    await cancel_idle_shards(store, shard.job_id)


async def delete_job(store: JobStore, project: str, job_id: str) -> None:
    """Delete a job and its results; a running job is cancelled first. Its ledger rows stay. Raises JobNotFound.

    No caller sees the job afterwards. The sweep removes its rows in small steps.
    """
    await get_job(store, project, job_id)
    while not await soft_delete(store, job_id):
        # The job is running, possibly because it was resumed or retried meanwhile.
        if not await terminate(store, job_id, JobStatus.CANCELLED):
            await get_job(store, project, job_id)


async def soft_delete(store: JobStore, job_id: str) -> bool:
    """Hide an ended or cancelling job from callers and release its Idempotency-Key. False: it is in another status."""
    async with store.database.write() as connection:
        hidden = await connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.status.in_((*FINISHED, JobStatus.CANCELLING)))
            .values(deleted_at=func.coalesce(Job.deleted_at, db_now()))
        )
        if hidden.rowcount:
            await connection.execute(delete(IdempotencyKey).where(IdempotencyKey.job_id == job_id))
            await delete_files_of(connection, job_id)
    return bool(hidden.rowcount)
