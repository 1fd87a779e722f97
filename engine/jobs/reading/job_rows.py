"""Job rows: one row answers a status poll. Every query for a caller is bound to the caller's project."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, case, false, select

from engine.config.settings import WORKER_SEEN_S
from engine.job_store import JobStore
from engine.jobs.allowed_actions import job_not_found
from engine.jobs.reading.progress import waiting_on
from models.base import db_now
from models.errors import InvalidInput
from models.job import Job, JobStatus
from models.worker import WorkerProcess

JOB_ID = re.compile(r"job_[0-9a-f]{32}\Z")
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}\Z")

# Built once: a poll is the most frequent query.
_WORKERS_LIVE = select(WorkerProcess.id).where(WorkerProcess.seen_at > db_now() - WORKER_SEEN_S).exists()
_COLUMNS = (
    # A caller's options may be long, and polls and lists do not need them.
    *(column for column in Job.__table__.columns if column.name != "options"),
    db_now().label("now"),
    case((Job.started_at.is_(None), _WORKERS_LIVE), else_=false()).label("workers_live"),
)
_ONE = select(*_COLUMNS).where(
    Job.id == bindparam("job_id"), Job.project == bindparam("project"), Job.deleted_at.is_(None)
)

_OF_BATCH = select(*_COLUMNS).where(
    Job.id == bindparam("job_id"),
    Job.batch_id == bindparam("batch_id"),
    Job.project == bindparam("project"),
    Job.deleted_at.is_(None),
)
_MANY = select(*_COLUMNS).where(Job.id.in_(bindparam("job_ids", expanding=True)), Job.deleted_at.is_(None))


async def get_job(store: JobStore, project: str, job_id: str) -> Row[Any]:
    """The row of a job, or of the job that runs the batch of this id.

    Raises JobNotFound, alike for another project's, an unknown and a malformed id.
    """
    statement, values = _ONE, {"job_id": job_id, "project": project}
    if is_batch := BATCH_ID.match(job_id) is not None:
        statement, values = _OF_BATCH, values | {"job_id": job_id_of_batch(job_id), "batch_id": job_id}
    row = None
    if is_batch or JOB_ID.match(job_id):
        async with store.database.read() as connection:
            row = (await connection.execute(statement, values)).one_or_none()
    if row is None:
        raise job_not_found()
    return row


def job_id_of_batch(batch_id: str) -> str:
    """The id of the job that runs a batch: the two have the same digits."""
    return f"job_{batch_id.removeprefix('batch_')}"


async def get_jobs(store: JobStore, job_ids: Sequence[str]) -> Sequence[Row[Any]]:
    """The rows of these jobs without deleted ones, of any project: the caller has checked the access before."""
    async with store.database.read() as connection:
        return (await connection.execute(_MANY, {"job_ids": list(job_ids)})).all()


async def list_jobs(
    store: JobStore, project: str, *, limit: int, after_id: str | None, status: str | None
) -> tuple[Sequence[Row[Any]], bool]:
    """A page of jobs, newest first, after the given id; and whether there are more. Raises InvalidInput."""
    statement = select(*_COLUMNS).where(Job.project == project, Job.deleted_at.is_(None))
    if after_id is not None:
        if not JOB_ID.match(after_id):
            raise InvalidInput(
                "Invalid 'after': not the id of a job. Send the last_id of the page before.",
                param="after",
                code="invalid_value",
            )
        statement = statement.where(Job.id < after_id)
    if status is not None:
        statement = statement.where(Job.status == status)
    async with store.database.read() as connection:
        rows = (await connection.execute(statement.order_by(Job.id.desc()).limit(limit + 1))).all()
    return rows[:limit], len(rows) > limit


def etag(row: Row[Any]) -> str:
    """ETag of a job: changes with everything that a poller sees, also with rates and due times."""
    parts = [str(row.version)]
    if row.status == JobStatus.IN_PROGRESS:
        if row.rate_sample_at is not None:
            parts.append(str(int((row.now - row.rate_sample_at) // 10)))
        parts += [str(part) for part in waiting_on(row) if part is not None]
    return f'"{"-".join(parts)}"'


JOB_STATUSES = tuple(JobStatus)
