"""Events of jobs: what a transaction that ends or pauses a job, or makes it pass a quarter, tells its subscribers.

A job that runs a batch sends none of these: its batch sends events of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Row, Select, and_, bindparam, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.storage.database import Database
from engine.webhooks.outbox import event_id_of, insert_event
from models.base import new_id
from models.job import FINISHED, Job, JobStatus
from models.webhook import EventType, WebhookEndpoint, WebhookEvent

EVENT_OF_STATUS = {
    JobStatus.COMPLETED: EventType.JOB_COMPLETED,
    JobStatus.COMPLETED_WITH_ERRORS: EventType.JOB_COMPLETED,
    JobStatus.FAILED: EventType.JOB_FAILED,
    JobStatus.EXPIRED: EventType.JOB_EXPIRED,
    JobStatus.CANCELLED: EventType.JOB_CANCELLED,
    JobStatus.PAUSED: EventType.JOB_PAUSED,
}
QUARTERS = 4
PROGRESS_ROWS = 1000  # that one query reads: jobs, each with the endpoints that it has

_COLUMNS = (
    Job.id.label("job_id"),
    Job.project,
    Job.status,
    Job.total,
    Job.completed,
    Job.failed,
    Job.created_at,
    Job.finished_at,
    Job.waiting_on,
    WebhookEndpoint.id.label("endpoint_id"),
    WebhookEndpoint.event_types,
)


def _subscriptions(*of_jobs: Any) -> tuple[Select[Any], Select[Any]]:
    """Jobs with each endpoint that may subscribe to their events: those of the project, and those of the job alone."""
    jobs = select(*_COLUMNS).where(WebhookEndpoint.disabled_at.is_(None), Job.batch_id.is_(None), *of_jobs)
    return (
        jobs.join(WebhookEndpoint, and_(WebhookEndpoint.project == Job.project, WebhookEndpoint.job_id.is_(None))),
        jobs.join(WebhookEndpoint, WebhookEndpoint.job_id == Job.id),
    )


# Built once: it runs at the end of every job.
_OF_ONE_JOB = union_all(*_subscriptions(Job.id == bindparam("job_id")))


async def record_job_event(connection: AsyncConnection, job_id: str) -> None:
    """Insert the event of a job that this transaction has ended or paused; one look-up where nobody subscribes.

    Called twice for one end it inserts one event. A job that is retried and ends again has another one.
    """
    rows = (await connection.execute(_OF_ONE_JOB, {"job_id": job_id})).all()
    event_type = EVENT_OF_STATUS.get(JobStatus(rows[0].status)) if rows else None
    if event_type is None:
        return
    job, has_ended = rows[0], rows[0].status in FINISHED
    data: dict[str, Any] = {"status": job.status}
    if not has_ended:
        data["waiting_on"] = job.waiting_on
    event_id = event_id_of(job.job_id, job.finished_at, "end") if has_ended else new_id("evt")
    await _insert_once(connection, event_id, event_type, rows, data)


async def record_job_events(connection: AsyncConnection, job_ids: Iterable[str]) -> None:
    """`record_job_event` for each of these jobs."""
    for job_id in job_ids:
        await record_job_event(connection, job_id)


async def _insert_once(
    connection: AsyncConnection, event_id: str, event_type: EventType, rows: Iterable[Row[Any]], data: dict[str, Any]
) -> None:
    """Insert an event of the job for those of its endpoints that subscribe to it, unless it is there already."""
    job = next(iter(rows))
    subscribers = [row.endpoint_id for row in rows if event_type in row.event_types]
    if not subscribers:
        return
    known = await connection.execute(select(WebhookEvent.id).where(WebhookEvent.id == event_id))
    if known.first() is None:
        await insert_event(
            connection,
            event_id,
            event_type,
            project=job.project,
            subject_id=job.job_id,
            data=data,
            subscribers=subscribers,
        )


async def report_progress(database: Database) -> None:
    """Insert the progress events (25, 50, 75 %) of the running jobs whose owners subscribe to them, each once.

    A job that has passed several marks since the last time sends the last of them alone. Raises StorageUnavailable.
    """
    async with database.read() as connection:
        if (await connection.execute(select(WebhookEndpoint.id).limit(1))).first() is None:
            return
    last_id = ""
    while rows := await _passed_marks(database, last_id):
        last_id = max(job_id for job_id, _ in rows)
        due = {event_id: job_id for job_id, event_id in rows if event_id is not None}
        async with database.read() as connection:
            known = await connection.execute(select(WebhookEvent.id).where(WebhookEvent.id.in_(due)))
            for event_id in known.scalars():
                del due[event_id]
        for job_id in sorted(due.values()):
            async with database.write() as connection:
                await _record_progress(connection, job_id)


async def _passed_marks(database: Database, after_id: str) -> list[tuple[str, str | None]]:
    """The next running jobs with subscribers, and for each the id of the event of its last mark, if that is wanted."""
    has_passed = Job.total <= QUARTERS * (Job.completed + Job.failed)
    running = (Job.status == JobStatus.IN_PROGRESS, Job.total > 0, has_passed, Job.id > after_id)
    page = union_all(*_subscriptions(*running)).order_by("job_id").limit(PROGRESS_ROWS)
    async with database.read() as connection:
        rows = (await connection.execute(page)).all()
    if len(rows) == PROGRESS_ROWS and rows[0].job_id != rows[-1].job_id:
        rows = [row for row in rows if row.job_id != rows[-1].job_id]  # whose endpoints may not all be in this page
    return [(row.job_id, _progress_id(row) if EventType.JOB_PROGRESS in row.event_types else None) for row in rows]


async def _record_progress(connection: AsyncConnection, job_id: str) -> None:
    # The lock keeps the job from ending before this: no progress is reported behind an end.
    await connection.execute(select(Job.id).where(Job.id == job_id).with_for_update(key_share=True))
    running = (Job.id == job_id, Job.status == JobStatus.IN_PROGRESS, Job.total > 0)
    rows = (await connection.execute(union_all(*_subscriptions(*running)))).all()
    if not rows or (event_id := _progress_id(rows[0])) is None:
        return
    job = rows[0]
    data = {"progress": _mark_of(job) / 100, "total": job.total, "completed": job.completed, "failed": job.failed}
    await _insert_once(connection, event_id, EventType.JOB_PROGRESS, rows, data)


def _mark_of(job: Row[Any]) -> int:
    """The last of 25, 50 and 75 (percent) that the job has passed; 0: none yet, or it is done."""
    quarters = (job.completed + job.failed) * QUARTERS // job.total
    return 100 // QUARTERS * quarters if quarters < QUARTERS else 0


def _progress_id(job: Row[Any]) -> str | None:
    """The id of the event of the last mark that the job has passed. The same each time: it is inserted once."""
    mark = _mark_of(job)
    return event_id_of(job.job_id, job.created_at, f"{mark}%") if mark else None
