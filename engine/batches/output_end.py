"""The end of a batch: its files, its final status and its event, in the transaction that ends its last step."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.batches.output_progress import OutputProgress
from engine.batches.output_source import OutputSource
from engine.batches.steps import ClaimedStep, StepStopped, end_step, lock_step
from engine.files.parts import add_file
from engine.jobs.control.batch_of_job import disown_output
from engine.observability import failpoints
from engine.webhooks.outbox import record_event
from models.base import db_now
from models.batch import ENDED, Batch, BatchStatus, error_owner, output_owner
from models.file import FilePurpose, new_file_id
from models.job import Job, JobStatus
from models.webhook import EventType

DEFAULT_EXPIRY_S = 30 * 86400
_EVENTS = {
    BatchStatus.COMPLETED: EventType.BATCH_COMPLETED,
    BatchStatus.FAILED: EventType.BATCH_FAILED,
    BatchStatus.EXPIRED: EventType.BATCH_EXPIRED,
    BatchStatus.CANCELLED: EventType.BATCH_CANCELLED,
}


async def end_batch(
    connection: AsyncConnection, source: OutputSource, step: ClaimedStep, progress: OutputProgress | None
) -> None:
    """End a batch and its step. `progress`: of the output that was written; None: none of its lines was validated.

    Raises StepStopped.
    """
    await lock_step(connection, step)
    # A delete of the job waits for the files that it must delete, or they are not made.
    kept = select(Job.id).where(Job.id == step.job_id, Job.deleted_at.is_(None)).with_for_update(read=True)
    if (await connection.execute(kept)).first() is None:
        raise StepStopped("the job was deleted")
    batch = source.batch
    current = (await connection.execute(select(Batch.status).where(Batch.id == batch.id).with_for_update())).scalar()
    status = _final_status(source.job.status, current, progress)
    values: dict[str, Any] = {"status": status, f"{status}_at": db_now()}
    if status in (BatchStatus.COMPLETED, BatchStatus.EXPIRED):
        values["finalizing_at"] = source.job.finished_at
    if status is BatchStatus.CANCELLED and batch.cancelling_at is None:
        values["cancelling_at"] = source.job.finished_at
    if status is BatchStatus.FAILED:
        error = source.not_run_error()
        values |= {"errors": [failure(error.code, error.message)], "error_count": 1}
    if progress is not None:
        values |= {"completed": progress.completed, "failed": progress.failed}
        values["output_file_id"] = await _add(connection, source, "output", bool(progress.output_parts))
        values["error_file_id"] = await _add(connection, source, "error", bool(progress.error_parts))
    await _end(connection, source, step, values)


async def fail_batch(
    connection: AsyncConnection, source: OutputSource, step: ClaimedStep, code: str, message: str
) -> None:
    """End a batch whose output cannot be written, with this error and without files. Raises StepStopped."""
    await lock_step(connection, step)
    await disown_output(connection, source.batch.id)
    values = {"status": BatchStatus.FAILED, "failed_at": db_now(), "errors": [failure(code, message)], "error_count": 1}
    await _end(connection, source, step, values)


def failure(code: str, message: str) -> dict[str, Any]:
    """An error of the batch as a whole."""
    return {"code": code, "message": message, "param": None, "line": None}


async def _end(connection: AsyncConnection, source: OutputSource, step: ClaimedStep, values: dict[str, Any]) -> None:
    batch = source.batch
    ended = await connection.execute(
        update(Batch).where(Batch.id == batch.id, Batch.status.not_in(sorted(ENDED))).values(values)
    )
    if ended.rowcount:
        await record_event(
            connection,
            _EVENTS[values["status"]],
            project=batch.project,
            job_id=batch.job_id,
            subject_id=batch.id,
        )
    await end_step(connection, step)
    failpoints.hit("during_output_end")


async def _add(connection: AsyncConnection, source: OutputSource, which: str, has_parts: bool) -> str | None:
    """Make a file of the parts that were written; None: there is none."""
    if not has_parts:
        return None
    batch, file_id = source.batch, new_file_id()
    await add_file(
        connection,
        file_id=file_id,
        project=batch.project,
        key_id=batch.key_id,
        purpose=FilePurpose.BATCH_OUTPUT,
        filename=f"{batch.id}_{which}.jsonl",
        parts_of=output_owner(batch.id) if which == "output" else error_owner(batch.id),
        expires_at=db_now() + (batch.output_expires_after_s or DEFAULT_EXPIRY_S),
    )
    return file_id


def _final_status(job_status: str, batch_status: str | None, progress: OutputProgress | None) -> BatchStatus:
    if job_status == JobStatus.CANCELLED or batch_status == BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    if job_status == JobStatus.EXPIRED:
        return BatchStatus.EXPIRED
    if job_status == JobStatus.FAILED and (progress is None or progress.not_run):
        return BatchStatus.FAILED
    return BatchStatus.COMPLETED
