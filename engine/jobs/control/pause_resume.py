"""Pause and resume of a job. Results are kept.

Only the status in the job's row decides: no shard of a paused job is claimed, and a worker that runs one
releases it, without counting the attempt, once its calls in flight are recorded. So both may race with anything.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import Row, update

from engine.config.settings import Settings
from engine.job_store import JobStore
from engine.jobs.allowed_actions import action_conflict
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.cost_limit import set_max_cost
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.webhooks.job_events import record_job_event
from models.base import db_now, usd_text
from models.errors import Conflict, InvalidInput
from models.job import Job, JobStatus

RUNNING_STATUSES = (JobStatus.VALIDATING, JobStatus.IN_PROGRESS)


async def pause(store: JobStore, project: str, job_id: str) -> None:
    """Start no upstream calls until the job is resumed; results of calls in flight are recorded. Idempotent.

    Raises JobNotFound, or Conflict when the job has ended or is ending.
    """
    await get_job(store, project, job_id)
    async with store.database.write() as connection:
        paused = await connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.status == JobStatus.IN_PROGRESS, Job.deleted_at.is_(None))
            .values(status=JobStatus.PAUSED, waiting_on=None, next_attempt_at=None, version=Job.version + 1)
        )
        if paused.rowcount:
            await record_job_event(connection, job_id)
    if not paused.rowcount:
        row = await get_job(store, project, job_id)
        if row.status != JobStatus.PAUSED:
            raise action_conflict("pause", row.status)


async def resume(
    store: JobStore, project: str, job_id: str, max_cost_usd: Decimal | None = None, *, dispatcher: Dispatcher
) -> None:
    """Continue a paused job, with a new cost limit where one is passed. Idempotent.

    Raises JobNotFound; Conflict when the job has ended or is ending, or its ceiling does not cover the next call;
    InvalidInput for a new ceiling that is spent already, or no higher than the one that stopped the job.
    """
    row = await get_job(store, project, job_id)
    if row.status not in (*RUNNING_STATUSES, JobStatus.PAUSED):
        raise action_conflict("resume", row.status)
    if row.status == JobStatus.PAUSED and row.max_cost_usd is not None:
        _check_ceiling(row, max_cost_usd)
    async with store.database.write() as connection:
        if max_cost_usd is not None:
            await set_max_cost(connection, job_id, max_cost_usd)
        resumed = await connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.status == JobStatus.PAUSED, Job.deleted_at.is_(None))
            .values(_columns_of_resume(store.settings, row))
        )
    if resumed.rowcount:
        await dispatcher.dispatch_soon()
        return
    row = await get_job(store, project, job_id)
    if row.status not in RUNNING_STATUSES:
        raise action_conflict("resume", row.status)


def _check_ceiling(job: Row[Any], new_ceiling_usd: Decimal | None) -> None:
    """Raises Conflict or InvalidInput where a paused job would pause again for want of money."""
    spent_usd = job.cost_usd + job.ambiguous_cost_usd
    is_out_of_budget = job.waiting_on == "budget" or spent_usd >= job.max_cost_usd
    spent = f"The job may have cost {usd_text(spent_usd)} already"
    if job.ambiguous_cost_usd:
        spent += f", {usd_text(job.ambiguous_cost_usd)} of it for calls that were cut off"
    ceiling = f"its ceiling is {usd_text(job.max_cost_usd)}, and what is left does not cover the next call"
    if new_ceiling_usd is None and is_out_of_budget:
        raise Conflict(
            f"{spent}; {ceiling}. Resume it with a higher max_cost_usd: the ceiling of the whole job, what is spent "
            "included."
        )
    if new_ceiling_usd is not None and is_out_of_budget and spent_usd < new_ceiling_usd <= job.max_cost_usd:
        raise InvalidInput(
            f"Invalid 'max_cost_usd': {ceiling}. Send more than {usd_text(job.max_cost_usd)}.",
            param="max_cost_usd",
            code="invalid_value",
        )


def _columns_of_resume(settings: Settings, job: Row[Any]) -> dict[str, Any]:
    columns = resumed_columns(settings)
    if job.batch_id is not None:  # the window of a batch does not begin again
        del columns["expires_at"]
    return columns


def resumed_columns(settings: Settings) -> dict[str, Any]:
    """Columns of a job that continues after a pause or a retry: its rate and its deadline start again."""
    return {
        "status": JobStatus.IN_PROGRESS,
        "waiting_on": None,
        "next_attempt_at": None,
        "outage": None,
        "not_before": None,
        "finished_at": None,
        "expires_at": db_now() + settings.job_deadline_days * 86400.0,
        # No sample before the next results: an old rate says nothing about the present one.
        "rate_sample_at": None,
        "rate_sample_done": Job.completed + Job.failed,
        "rate_sample_tokens": Job.prompt_tokens,
        "prev_rate_sample_at": None,
        "prev_rate_sample_done": Job.completed + Job.failed,
        "prev_rate_sample_tokens": Job.prompt_tokens,
        "version": Job.version + 1,
    }
