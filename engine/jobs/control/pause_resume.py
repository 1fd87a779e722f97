"""Control: a caller pauses a job, and resumes it. What is done is kept.

A pause changes the job's row and nothing else that matters: no shard of a paused job is rung or claimed, and whoever
holds one gives it back, unspent, once what is under way has landed. So a pause and a resume may cross anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, select, update

from engine.jobs.reading.job_rows import find
from engine.jobs.recording.budget import raise_ceiling
from engine.jobs.row_locks import lock_shards
from engine.jobs.scheduling.dispatch import dispatch_soon
from engine.jobs.verbs import cannot
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from models.base import db_now, usd_text
from models.errors import Conflict, InvalidInput
from models.job import Job, JobStatus, Shard, ShardState

# How long a worker whose calls are slow may not know that its job was paused or cancelled.
LOOK_S = 1.0
RUNS = (JobStatus.VALIDATING, JobStatus.IN_PROGRESS)


async def pause(runtime: Runtime, project: str, job_id: str) -> None:
    """No new upstream calls until the job is resumed; what is under way lands. Idempotent.

    Raises JobNotFound, or Conflict when the job has ended or is ending.
    """
    await find(runtime, project, job_id)
    async with runtime.database.write() as connection:
        paused = await connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.status == JobStatus.IN_PROGRESS, Job.deleted_at.is_(None))
            .values(status=JobStatus.PAUSED, waiting_on=None, next_attempt_at=None, version=Job.version + 1)
        )
    if not paused.rowcount:
        row = await find(runtime, project, job_id)
        if row.status != JobStatus.PAUSED:
            raise cannot("pause", row.status)
        return
    # Its rings would take the places of others' until somebody looks at them.
    async with runtime.database.write() as connection:
        rung = await lock_shards(connection, Shard.job_id == job_id, Shard.state == ShardState.RUNG)
        await connection.execute(update(Shard).where(Shard.id.in_(rung)).values(state=ShardState.QUEUED, rung_at=None))


async def resume(runtime: Runtime, project: str, job_id: str, max_cost_usd: Decimal | None = None) -> None:
    """Let a paused job go on, under a new ceiling where one is given. Idempotent.

    Raises JobNotFound; Conflict when the job has ended or is ending, or its ceiling does not cover the next call;
    InvalidInput for a new ceiling that is spent already, or no higher than the one that stopped the job.
    """
    row = await find(runtime, project, job_id)
    if row.status not in (*RUNS, JobStatus.PAUSED):
        raise cannot("resume", row.status)
    if row.status == JobStatus.PAUSED and row.max_cost_usd is not None:
        _check_ceiling(row, max_cost_usd)
    async with runtime.database.write() as connection:
        if max_cost_usd is not None:
            await raise_ceiling(connection, job_id, max_cost_usd)
        resumed = await connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.status == JobStatus.PAUSED, Job.deleted_at.is_(None))
            .values(going_on(runtime))
        )
    if resumed.rowcount:
        await dispatch_soon(runtime)
        return
    row = await find(runtime, project, job_id)
    if row.status not in RUNS:
        raise cannot("resume", row.status)


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


def going_on(runtime: Runtime) -> dict[str, Any]:
    """Columns of a job that goes on after it stood still: its rate and its deadline count anew."""
    return {
        "status": JobStatus.IN_PROGRESS,
        "waiting_on": None,
        "next_attempt_at": None,
        "waiting": None,
        "blocked_until": None,
        "finished_at": None,
        "expires_at": db_now() + runtime.settings.job_deadline_days * 86400.0,
        # No mark until something lands: before that nobody knows a rate, and what it was long ago is none.
        "mark_at": None,
        "mark_done": Job.completed + Job.failed,
        "mark_tokens": Job.prompt_tokens,
        "earlier_mark_at": None,
        "earlier_mark_done": Job.completed + Job.failed,
        "earlier_mark_tokens": Job.prompt_tokens,
        "version": Job.version + 1,
    }


async def until_unwanted(runtime: Runtime, job_id: str) -> None:
    """Return once the job wants no work on its shards: it is paused, has ended or is gone. One look each LOOK_S."""
    status = select(Job.status).where(Job.id == job_id, Job.deleted_at.is_(None))
    while True:
        await asyncio.sleep(LOOK_S)
        with contextlib.suppress(*DATABASE_ERRORS):
            async with runtime.database.read() as connection:
                if (await connection.execute(status)).scalar_one_or_none() != JobStatus.IN_PROGRESS:
                    return
