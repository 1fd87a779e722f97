"""Steps: what workers do for jobs that read or write files. Each step is leased by one worker at a time.

A step function is `async def run(parts: StepParts, step: ClaimedStep) -> None`. It does its work in bounded pieces,
calls `step.check()` between them, and changes the database in transactions that begin with `lock_step()`, so that a
worker that lost its lease writes nothing. It ends with `move_step()` or `end_step()` in its last transaction. What it
raises is handled by engine/batches/worker.py.

Kinds: VALIDATE while the job is `validating`, INGEST while it is active, WRITE_OUTPUT once it has ended. A claim turns
a step of any other kind whose job has ended into WRITE_OUTPUT without progress: also a job that was cancelled, failed
or expired before its file had been validated or read. Rows are locked in the order steps, shards, jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, func, null, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from engine.files.file_store import FileStore
from engine.job_store import JobStore
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.ledger.usage_buffer import UsageBuffer
from engine.process.work_threads import WorkThreads
from models.base import db_now, greatest
from models.batch import JobStep, StepKind
from models.embedding import Alias
from models.errors import EmbedmillError
from models.job import ACTIVE_STATUSES, FINISHED, Job, JobStatus


@dataclass(frozen=True, slots=True)
class StepParts:
    """What the steps of a process share. `alias`: by name, raises UnknownAlias. `aliases`: all, by their full names."""

    store: JobStore
    files: FileStore
    work: WorkThreads
    alias: Callable[[str], Alias]
    aliases: Mapping[str, Alias]
    dispatcher: Dispatcher
    usage: UsageBuffer


class StepStopped(EmbedmillError):
    """The run of a step ends before its work is done: shutdown, a lost lease, or a job that is in another state."""

    code = "stopped"


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class ClaimedStep:
    """A leased step. `progress`: what store_progress() stored last; None at the beginning.

    `must_stop`: True once its worker drains, or the step is no longer its own. `attempts`: claims since the last
    progress, this one included.
    """

    job_id: str
    project: str
    kind: StepKind
    fence: int
    progress: dict[str, Any] | None
    must_stop: Callable[[], bool] = field(default=_never, compare=False)
    attempts: int = 1

    def check(self) -> None:
        """Called between two pieces of work. Raises StepStopped."""
        if self.must_stop():
            raise StepStopped("the step stops before its end: another worker goes on with it")


def _fits(kind: Any) -> ColumnElement[bool]:
    """The job is in a state in which a step of this kind runs."""
    return or_(
        and_(kind == StepKind.VALIDATE, Job.status == JobStatus.VALIDATING),
        and_(kind == StepKind.INGEST, Job.status.in_(sorted(ACTIVE_STATUSES))),
        and_(kind == StepKind.WRITE_OUTPUT, Job.status.in_(sorted(FINISHED))),
    )


def _is_free(step: Any) -> ColumnElement[bool]:
    return and_(or_(step.lease_until.is_(None), step.lease_until < db_now()), step.due_at <= db_now())


def _next_step(busy_projects: Collection[str]) -> Any:
    """The due step whose project has the fewest running ones; of these, the one that has waited longest."""
    step, running = aliased(JobStep), JobStep.__table__.alias("running")
    load = (
        select(running.c.project, func.count().label("steps"))
        .where(running.c.lease_until >= db_now())
        .group_by(running.c.project)
        .subquery("load")
    )
    return (
        select(step.job_id)
        .join(Job, Job.id == step.job_id)
        .outerjoin(load, load.c.project == step.project)
        .where(
            _is_free(step),
            or_(_fits(step.kind), Job.status.in_(sorted(FINISHED))),
            Job.deleted_at.is_(None),
            step.project.not_in(sorted(busy_projects)),
        )
        .order_by(func.coalesce(load.c.steps, 0), step.due_at, step.job_id)
        .limit(1)
        .with_for_update(skip_locked=True, of=step)
        .scalar_subquery()
    )


async def claim_step(store: JobStore, worker: str, busy_projects: Collection[str] = ()) -> ClaimedStep | None:
    """Lease the next due step of a project that is none of `busy_projects`; None when none is due.

    Raises StorageUnavailable.
    """
    has_ended = (
        select(Job.id)
        .where(Job.id == JobStep.job_id, Job.status.in_(sorted(FINISHED)))
        .correlate(JobStep)
        .scalar_subquery()
        .is_not(None)
    )
    turns = and_(JobStep.kind != StepKind.WRITE_OUTPUT, has_ended)
    async with store.database.read() as connection:  # nearly always there is none: no write lock to find that out
        statement = select(JobStep.job_id).where(_is_free(JobStep), JobStep.project.not_in(sorted(busy_projects)))
        is_due = or_(_fits(JobStep.kind), Job.status.in_(sorted(FINISHED)))
        statement = statement.join(Job, Job.id == JobStep.job_id).where(is_due, Job.deleted_at.is_(None)).limit(1)
        if (await connection.execute(statement)).first() is None:
            return None
    async with store.database.write() as connection:
        row = (
            await connection.execute(
                update(JobStep)
                .where(JobStep.job_id == _next_step(busy_projects), _is_free(JobStep))
                .values(
                    kind=case((turns, StepKind.WRITE_OUTPUT.value), else_=JobStep.kind),
                    progress=case((turns, null()), else_=JobStep.progress),
                    attempts=case((turns, 1), else_=JobStep.attempts + 1),
                    fence=JobStep.fence + 1,
                    lease_until=db_now() + store.settings.lease_s,
                    worker=worker,
                )
                .returning(
                    JobStep.job_id,
                    JobStep.project,
                    JobStep.kind,
                    JobStep.fence,
                    JobStep.progress,
                    JobStep.attempts,
                )
            )
        ).one_or_none()
    if row is None:
        return None
    return ClaimedStep(row.job_id, row.project, StepKind(row.kind), row.fence, row.progress, attempts=row.attempts)


def _is_own(step: ClaimedStep) -> ColumnElement[bool]:
    return and_(
        JobStep.job_id == step.job_id,
        JobStep.fence == step.fence,
        JobStep.kind == step.kind,
        JobStep.lease_until.is_not(None),
    )


def _job_fits(step: ClaimedStep) -> ColumnElement[bool]:
    job = select(Job.id).where(Job.id == JobStep.job_id, _fits(JobStep.kind), Job.deleted_at.is_(None))
    return job.correlate(JobStep).exists()


async def renew_step(store: JobStore, step: ClaimedStep) -> bool:
    """Renew the lease. False: this claim has ended, or the job is in another state. Raises StorageUnavailable."""
    async with store.database.write() as connection:
        renewed = await connection.execute(
            update(JobStep).where(_is_own(step), _job_fits(step)).values(lease_until=db_now() + store.settings.lease_s)
        )
    return bool(renewed.rowcount)


async def release_step(
    store: JobStore, step: ClaimedStep, *, delay_s: float, counts_as_attempt: bool, error: str | None = None
) -> None:
    """Make the step due again in `delay_s`. Changes nothing once this claim has ended. Raises StorageUnavailable."""
    async with store.database.write() as connection:
        await connection.execute(
            update(JobStep)
            .where(_is_own(step))
            .values(
                lease_until=None,
                worker=None,
                due_at=db_now() + delay_s,
                attempts=JobStep.attempts if counts_as_attempt else greatest(JobStep.attempts - 1, 0),
                last_error=error[:500] if error is not None else JobStep.last_error,
            )
        )


async def lock_step(connection: AsyncConnection, step: ClaimedStep) -> None:
    """Lock the step for the transaction. Raises StepStopped: it is no longer this worker's, or its job has changed."""
    row = await connection.execute(
        select(JobStep.job_id).where(_is_own(step), _job_fits(step)).with_for_update(of=JobStep)
    )
    if row.first() is None:
        raise StepStopped("the step is no longer this worker's, or its job is in another state")


async def store_progress(connection: AsyncConnection, step: ClaimedStep, progress: dict[str, Any]) -> None:
    """Store where the step goes on after a crash; its attempts start from 0 again. Raises StepStopped."""
    await _change(connection, step, {"progress": progress, "attempts": 0, "last_error": None})


async def move_step(
    connection: AsyncConnection, step: ClaimedStep, kind: StepKind, *, progress: dict[str, Any] | None = None
) -> None:
    """End this step: the job's next one is due now, for any worker. Raises StepStopped."""
    values = {"kind": kind, "progress": progress, "attempts": 0, "last_error": None, "due_at": db_now()}
    await _change(connection, step, values | {"lease_until": None, "worker": None})


async def end_step(connection: AsyncConnection, step: ClaimedStep) -> None:
    """End the last step of the job. Raises StepStopped."""
    removed = await connection.execute(delete(JobStep).where(_is_own(step)))
    if not removed.rowcount:
        raise StepStopped("the step is no longer this worker's")


async def _change(connection: AsyncConnection, step: ClaimedStep, values: dict[str, Any]) -> None:
    changed = await connection.execute(update(JobStep).where(_is_own(step)).values(values))
    if not changed.rowcount:
        raise StepStopped("the step is no longer this worker's")
