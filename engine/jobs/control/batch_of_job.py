"""What a change of a job changes of the batch that it runs, in the same transaction. Jobs without a batch: nothing.

Rows are locked in the order step, shards, job, batch.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, null, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.files.parts import disown_parts
from models.base import db_now
from models.batch import ENDED, Batch, BatchStatus, JobStep, StepKind, error_owner, output_owner
from models.errors import Conflict
from models.file import File, FilePart
from models.job import Job

UNIT_S = {"h": 3600, "m": 60}


async def mark_cancelling(connection: AsyncConnection, job_id: str) -> None:
    """Its job is being cancelled: the batch ends as cancelled once its output is written."""
    await connection.execute(
        update(Batch)
        .where(Batch.job_id == job_id, Batch.status.not_in((*ENDED, BatchStatus.CANCELLING)))
        .values(status=BatchStatus.CANCELLING, cancelling_at=db_now())
    )


async def queue_output_again(connection: AsyncConnection, job: Row[Any]) -> None:
    """Failed inputs of its job run again: the output is written anew when they have. Locks the step.

    A worker that writes the output now loses its step. Raises Conflict when the input file was removed.
    """
    replaced = await connection.execute(
        update(JobStep)
        .where(JobStep.job_id == job.id)
        .values(
            kind=StepKind.RUN,
            due_at=db_now(),
            fence=JobStep.fence + 1,
            lease_until=None,
            worker=None,
            attempts=0,
            last_error=None,
            progress=null(),
        )
    )
    if not replaced.rowcount:
        await connection.execute(
            insert(JobStep).values(job_id=job.id, project=job.project, kind=StepKind.RUN, due_at=db_now())
        )
    # Looked up behind the step, which keeps a deleted file from being purged.
    part = select(FilePart.id).where(FilePart.owner_id == job.input_file_id).limit(1)
    if (await connection.execute(part)).first() is None:
        raise Conflict(
            "The input file of this batch was deleted, and its output is made from it: send the file again, and "
            "create a new batch of the requests that failed."
        )


async def reopen_batch(connection: AsyncConnection, job_id: str) -> None:
    """The batch is in progress again, with a new window. Its former files stay as they are, until they expire."""
    batch = (await connection.execute(select(Batch.id, Batch.completion_window).where(Batch.job_id == job_id))).one()
    window_s = int(batch.completion_window[:-1]) * UNIT_S[batch.completion_window[-1]]
    await connection.execute(update(Job).where(Job.id == job_id).values(expires_at=db_now() + window_s))
    values: dict[str, Any] = {"status": BatchStatus.IN_PROGRESS, "expires_at": db_now() + window_s}
    values |= {"output_file_id": None, "error_file_id": None, "completed": 0, "failed": 0}
    values |= {"errors": [], "error_count": 0}
    for name in ("finalizing", "completed", "failed", "expired", "cancelling", "cancelled"):
        values[f"{name}_at"] = None
    await connection.execute(update(Batch).where(Batch.job_id == job_id).values(values))
    await disown_output(connection, batch.id)


async def delete_files_of(connection: AsyncConnection, job_id: str) -> None:
    """Its job is deleted: so are the files of the batch that no caller has uploaded."""
    batch = (
        await connection.execute(
            select(
                Batch.output_file_id, Batch.error_file_id, Batch.is_inline, Batch.input_file_id, Batch.project
            ).where(Batch.job_id == job_id)
        )
    ).one_or_none()
    if batch is None:
        return
    ids = [batch.output_file_id, batch.error_file_id, batch.input_file_id if batch.is_inline else None]
    await connection.execute(
        update(File)
        .where(
            File.id.in_([file_id for file_id in ids if file_id is not None]),
            File.project == batch.project,
            File.deleted_at.is_(None),
        )
        .values(deleted_at=db_now())
    )


async def disown_output(connection: AsyncConnection, batch_id: str) -> None:
    """Let purge remove what was written for a batch and is in no file."""
    await disown_parts(connection, output_owner(batch_id))
    await disown_parts(connection, error_owner(batch_id))


async def disown_outputs_of(connection: AsyncConnection, job_ids: list[str]) -> None:
    """The rows of these jobs are removed: so is what was written for their batches and is in no file."""
    batches = list((await connection.execute(select(Batch.id).where(Batch.job_id.in_(job_ids)))).scalars())
    for batch_id in batches:
        await disown_output(connection, batch_id)
