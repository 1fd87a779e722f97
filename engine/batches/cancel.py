"""Cancels a batch. What has run stays, and its output is written; a batch that is not validated yet ends at once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.batches.batch_rows import get_batch
from engine.job_store import JobStore
from engine.jobs.control.termination import cancel_idle_shards
from engine.jobs.recording.completion import end_columns
from engine.webhooks.outbox import record_event
from models.base import db_now
from models.batch import Batch, BatchStatus, JobStep
from models.file_errors import BatchEnded
from models.job import FINISHED, LEGAL_MOVES, Job, JobStatus
from models.webhook import EventType

_CANCELLED = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)
_OPEN = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING)


async def cancel_batch(store: JobStore, project: str, batch_id: str) -> None:
    """Cancel the batch; nothing changes for one that is cancelled already. Raises BatchNotFound, BatchEnded."""
    batch = await get_batch(store, project, batch_id)
    if batch.status in _CANCELLED:
        return
    async with store.database.write() as connection:
        is_cancelled = await _cancel(connection, store, batch)
    if is_cancelled:
        await cancel_idle_shards(store, batch.job_id)
        return
    batch = await get_batch(store, project, batch_id)
    if batch.status not in _CANCELLED:
        message = f"Cannot cancel a batch with status '{batch.status}'."  # OpenAI's words, to which clients compare
        raise BatchEnded(message)


async def _cancel(connection: AsyncConnection, store: JobStore, batch: Row[Any]) -> bool:
    """False: the batch has ended. Rows are locked in the order of engine/batches/steps.py: step, job, batch."""
    await connection.execute(select(JobStep.job_id).where(JobStep.job_id == batch.job_id).with_for_update())
    found = select(Job.status, Job.finished_at).where(Job.id == batch.job_id).with_for_update(key_share=True)
    job = (await connection.execute(found)).one_or_none()
    if job is None:
        return False
    status = job.status
    if status == JobStatus.VALIDATING:
        return await _end_unvalidated(connection, store, batch)
    changed = await connection.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.status.in_(_OPEN))
        .values(
            status=BatchStatus.CANCELLING,
            cancelling_at=db_now(),
            # A batch whose output is being written was finalizing.
            finalizing_at=job.finished_at if status in FINISHED else None,
        )
    )
    if not changed.rowcount:
        return False
    # A job that has ended is being written: the output step ends the batch as cancelled.
    if status not in FINISHED:
        sources = [state for state, targets in LEGAL_MOVES.items() if JobStatus.CANCELLED in targets]
        await connection.execute(
            update(Job)
            .where(Job.id == batch.job_id, Job.status.in_(sources))
            .values(
                status=JobStatus.CANCELLING,
                upload_lease_until=None,
                waiting_on=None,
                next_attempt_at=None,
                version=Job.version + 1,
            )
        )
    return True


async def _end_unvalidated(connection: AsyncConnection, store: JobStore, batch: Row[Any]) -> bool:
    """Nothing has run, so that there is nothing to write."""
    await connection.execute(delete(JobStep).where(JobStep.job_id == batch.job_id))
    await connection.execute(
        update(Job)
        .where(Job.id == batch.job_id)
        .values(status=JobStatus.CANCELLED, version=Job.version + 1, **end_columns(store.settings))
    )
    changed = await connection.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.status.in_(_OPEN))
        .values(status=BatchStatus.CANCELLED, cancelling_at=db_now(), cancelled_at=db_now())
    )
    await record_event(
        connection, EventType.BATCH_CANCELLED, project=batch.project, job_id=batch.job_id, subject_id=batch.id
    )
    return bool(changed.rowcount)
