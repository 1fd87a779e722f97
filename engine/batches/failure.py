"""The failure of a step that cannot be done: its job fails with the reason, and its batch with it."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.batches.steps import ClaimedStep, StepParts, end_step, lock_step
from engine.jobs.control.batch_of_job import disown_output
from engine.jobs.control.termination import cancel_idle_shards, terminate
from engine.jobs.recording.completion import end_columns
from engine.webhooks.outbox import record_event
from models.base import db_now
from models.batch import ENDED, Batch, BatchStatus
from models.job import LEGAL_MOVES, Job, JobStatus
from models.webhook import EventType

log = logging.getLogger("embedmill.steps")


async def fail_step(parts: StepParts, step: ClaimedStep, code: str, message: str) -> None:
    """End the job of a step as failed, and its batch. What has run of it can be read.

    Raises StepStopped when the step is no longer this worker's; StorageUnavailable: it fails again at its next claim.
    """
    log.warning("a step has failed", extra={"job_id": step.job_id, "kind": step.kind, "code": code, "reason": message})
    database = parts.store.database
    async with database.read() as connection:
        batch_id = (await connection.execute(select(Job.batch_id).where(Job.id == step.job_id))).scalar_one_or_none()
    if batch_id is None:
        async with database.write() as connection:  # a worker that has lost the step ends no job
            await lock_step(connection, step)
        # A crash in between leaves a step whose job has ended: the next claim removes it.
        await terminate(parts.store, step.job_id, JobStatus.FAILED, code, message)
        async with database.write() as connection:
            await end_step(connection, step)
        return
    async with database.write() as connection:
        await end_step(connection, step)
        await disown_output(connection, batch_id)
        await _fail_job(connection, parts, step.job_id, code, message)
        await _fail_batch(connection, step, batch_id, {"code": code, "message": message, "param": None, "line": None})
    await cancel_idle_shards(parts.store, step.job_id)


async def _fail_job(connection: AsyncConnection, parts: StepParts, job_id: str, code: str, message: str) -> None:
    """In the transaction that ends its batch, unless it has ended before."""
    locked = select(Job.error_summary).where(Job.id == job_id).with_for_update(key_share=True)
    summary = (await connection.execute(locked)).scalar_one()
    entry = {"code": code, "count": 0, "example_index": None, "message": message}
    sources = [status for status, targets in LEGAL_MOVES.items() if JobStatus.FAILED in targets]
    await connection.execute(
        update(Job)
        .where(Job.id == job_id, Job.status.in_(sources))
        .values(
            status=JobStatus.FAILED,
            error_summary=[*summary, entry],
            version=Job.version + 1,
            **end_columns(parts.store.settings),
        )
    )


async def _fail_batch(connection: AsyncConnection, step: ClaimedStep, batch_id: str, error: dict[str, Any]) -> None:
    errors = (await connection.execute(select(Batch.errors).where(Batch.id == batch_id))).scalar_one_or_none()
    moved = await connection.execute(
        update(Batch)
        .where(Batch.id == batch_id, Batch.status.not_in(sorted(ENDED)))
        .values(
            status=BatchStatus.FAILED,
            failed_at=db_now(),
            errors=[*(errors or []), error],
            error_count=Batch.error_count + 1,
        )
    )
    if moved.rowcount:
        await record_event(
            connection, EventType.BATCH_FAILED, project=step.project, job_id=step.job_id, subject_id=batch_id
        )
