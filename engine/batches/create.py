"""Creates batches: one row each in jobs, batches and job_steps, in one transaction."""

from __future__ import annotations

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.access.keys import Caller
from engine.batches.batch_request import BatchSpec
from engine.batches.variants import no_options
from engine.jobs.ingest.job_row import new_columns
from engine.webhooks.endpoints import BATCH_EVENTS, AttachedWebhook, attach_webhook
from engine.webhooks.targets import CheckedUrl
from models.base import db_now, new_id
from models.batch import Batch, BatchStatus, JobStep, StepKind
from models.job import Job, JobStatus


def new_batch_id() -> str:
    """An id of a batch; it sorts by age."""
    return new_id("batch")


def job_id_of(batch_id: str) -> str:
    """The id of the job that runs the batch."""
    return f"job_{batch_id.removeprefix('batch_')}"


async def insert_batch(
    connection: AsyncConnection,
    caller: Caller,
    batch_id: str,
    spec: BatchSpec,
    *,
    input_file_id: str,
    is_inline: bool,
    request_id: str,
) -> None:
    """Insert the batch, the job that runs it, and its first step. A worker validates it."""
    job_id = job_id_of(batch_id)
    await connection.execute(
        insert(Job).values(
            new_columns(caller, job_id, request_id)
            | {
                "status": JobStatus.VALIDATING,
                # Known once the lines have been read.
                "alias": "",
                "space": "",
                "dimensions": 0,
                "options": no_options(),
                "metadata_": spec.metadata or {},
                "batch_id": batch_id,
                "input_file_id": input_file_id,
                "expires_at": db_now() + spec.window_s,
            }
        )
    )
    await connection.execute(
        insert(Batch).values(
            id=batch_id,
            job_id=job_id,
            project=caller.project,
            key_id=caller.key_id,
            status=BatchStatus.VALIDATING,
            completion_window=spec.completion_window,
            input_file_id=input_file_id,
            is_inline=is_inline,
            default_model=spec.default_model,
            is_lenient=spec.is_lenient,
            metadata_=spec.metadata,
            output_expires_after_s=spec.output_expires_after_s,
            request_id=request_id,
            created_at=db_now(),
            expires_at=db_now() + spec.window_s,
        )
    )
    await connection.execute(
        insert(JobStep).values(job_id=job_id, project=caller.project, kind=StepKind.VALIDATE, due_at=db_now())
    )


async def attach_callback(
    connection: AsyncConnection, caller: Caller, batch_id: str, url: CheckedUrl
) -> AttachedWebhook:
    """Send the events of the batch to this URL. For the transaction that inserts it."""
    return await attach_webhook(
        connection, project=caller.project, job_id=job_id_of(batch_id), url=url, event_types=BATCH_EVENTS
    )
