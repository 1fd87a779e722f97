"""Turns: who is next, counted in tokens. Projects share alike, and within a project its jobs do.

Start-time fair queuing, on two levels. A claim moves its job, and its project, ahead by the tokens of the shard; next
is whoever stands furthest back. A new job joins in the middle of the line, and who comes back after an idle hour at its
rear: with neither credit nor debt (docs/decisions/0011-fair-shares.md).

Every question here is answered from indexes, and costs the same with ten jobs as with ten million: it looks at projects
that have something to do, and at the few jobs of theirs that stand furthest back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.storage.database import Database
from models.base import db_now
from models.job import FairShare, Job, Shard

# Written out, not bound: an index on a part of a table serves only a statement that names that part.
READY = and_(Job.status == literal_column("'in_progress'"), Job.not_before.is_(None))
ALL_PROJECTS = ""
# Projects furthest back that are looked at. Each that has no shard to give has a worker on one.
MAX_PROJECTS = 32
MAX_COUNTED_JOBS = 100


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Where a shard's job and project stand in line, in tokens."""

    shard_id: str
    state: str
    job_id: str
    project: str
    of_job: int
    of_project: int
    has_started: bool

    def precedes(self, other: QueuePosition, *, within: int = 0) -> bool:
        """True when this one's turn comes first; or when it comes at most `within` tokens later."""
        if self.project == other.project:
            return self.of_job < other.of_job + within
        return self.of_project < other.of_project + within


def may_run(attempts: Any) -> ColumnElement[bool]:
    """Not of blocked shards, nor of those that lost so many workers or attempts that the sweep sees to them first."""
    return and_(Shard.attempt < attempts, Shard.worker_crashes < Shard.crash_limit, Shard.blocked_by.is_(None))


async def next_shard(connection: AsyncConnection, attempts: int) -> str | None:
    """The due shard, rung or not, whose turn it is. `attempts`: how many a shard may have."""
    found = (await connection.execute(_NEXT, {"waited_s": 0.0, "attempts": attempts})).all()
    return next((row[0] for row in found if row[0] is not None), None)


async def starved_shards(connection: AsyncConnection, attempts: int, waited_s: float) -> list[str]:
    """Due shards that nobody took for so long: of each project, that of the next job, and of the next new one."""
    found = (await connection.execute(_STARVED, {"waited_s": waited_s, "attempts": attempts})).all()
    return [shard_id for row in found for shard_id in dict.fromkeys(row) if shard_id is not None]


async def positions(connection: AsyncConnection, shard_ids: list[str]) -> dict[str, QueuePosition]:
    """Where these shards stand, by id; those that are gone are absent."""
    rows = await connection.execute(_POSITIONS.where(Shard.id.in_(shard_ids)))
    return {row.shard_id: QueuePosition(**row._mapping) for row in rows}


async def advance(database: Database, connection: AsyncConnection, job_id: str, tokens: int) -> None:
    """A shard of the job has its turn: move the job and its project ahead. In the claim's transaction, at its end."""
    job = (
        await connection.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(
                virtual_time=_greatest(Job.virtual_time, _min_virtual_time(Job.project)) + tokens,
                shard_claims=Job.shard_claims + 1,
                started_at=func.coalesce(Job.started_at, db_now()),
                waiting_on=case((Job.waiting_on == "fairness", None), else_=Job.waiting_on),
            )
            .returning(Job.project, Job.virtual_time)
        )
    ).one()
    start = job.virtual_time - tokens
    runnable = select(Job.id).where(READY, Job.project == job.project)
    # The rear is where the least served of the others stands, should this one have been let in out of turn.
    least_of_others = select(func.min(Job.virtual_time)).where(READY, Job.project == job.project, Job.id != job_id)
    # Newcomers join further on with all that is served, shared by those in line, so that a stream of new jobs does not
    # keep an old one waiting for ever. Not further than the shard that begins now, for its rest may be given back.
    counted = select(func.count()).select_from(runnable.limit(MAX_COUNTED_JOBS).subquery()).scalar_subquery()
    minimum, count = (
        await connection.execute(
            select(_least(func.coalesce(least_of_others.scalar_subquery(), start), start), counted)
        )
    ).one()
    step = tokens // count if count > 1 else 0
    share, global_minimum = FairShare.__table__.c, _min_virtual_time(literal_column("''"))
    advanced = (
        await connection.execute(
            database.insert(FairShare)
            .values(
                project=job.project,
                virtual_time=global_minimum + tokens,
                min_virtual_time=minimum,
                start_virtual_time=start,
            )
            .on_conflict_do_update(
                index_elements=["project"],
                set_={
                    "virtual_time": _greatest(share.virtual_time, global_minimum) + tokens,
                    "min_virtual_time": _greatest(share.min_virtual_time, minimum),
                    "start_virtual_time": _greatest(_least(share.start_virtual_time + step, start + tokens), start),
                },
            )
            .returning(FairShare.virtual_time, global_minimum.label("rear"))
        )
    ).one()
    start = advanced.virtual_time - tokens
    # One row stands for all projects: to write it at each claim would make all claims wait for each other's commit. It
    # lags by a shard at the most. And it never passes a project that has something to do: what that one is owed for a
    # shard that it gave back would be lost.
    if start - advanced.rear < max(tokens, 1):
        return
    least = (await connection.execute(_LEAST_SERVED)).scalar_one_or_none()
    if least is None or least - advanced.rear < max(tokens, 1):
        return
    await connection.execute(
        database.insert(FairShare)
        .values(project=ALL_PROJECTS, virtual_time=0, min_virtual_time=least, start_virtual_time=least)
        .on_conflict_do_update(
            index_elements=["project"], set_={"min_virtual_time": least}, where=share.min_virtual_time < least
        )
    )


async def refund(connection: AsyncConnection, job_id: str, tokens: int) -> None:
    """A shard went back with this much of it undone: that was not served.

    The rears of both lines go back with it, should they have moved on since: whoever waits is never behind them.
    """
    job = (
        await connection.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(virtual_time=Job.virtual_time - tokens)
            .returning(Job.project, Job.virtual_time)
        )
    ).one_or_none()
    if job is None:
        return
    virtual_time = (
        await connection.execute(
            update(FairShare)
            .where(FairShare.project == job.project)
            .values(
                virtual_time=FairShare.virtual_time - tokens,
                min_virtual_time=_least(FairShare.min_virtual_time, job.virtual_time),
            )
            .returning(FairShare.virtual_time)
        )
    ).scalar_one_or_none()
    if virtual_time is not None:
        await connection.execute(
            update(FairShare)
            .where(FairShare.project == ALL_PROJECTS, FairShare.min_virtual_time > virtual_time)
            .values(min_virtual_time=virtual_time)
        )


def initial_virtual_time(project: str) -> ColumnElement[int]:
    """Where a new job of this project starts."""
    share = select(FairShare.start_virtual_time).where(FairShare.project == project)
    return func.coalesce(share.scalar_subquery(), 0)


def projects_by_virtual_time(limit: int = MAX_PROJECTS) -> Select[Any]:
    """Projects with a job that is ready, those furthest back first: `project`, `position`."""
    active = _active_projects()
    position = _greatest(func.coalesce(FairShare.virtual_time, 0), _min_virtual_time(literal_column("''")))
    return (
        select(active.c.project, position.label("position"))
        .outerjoin(FairShare, FairShare.project == active.c.project)
        .where(active.c.project.is_not(None))
        .order_by(position, active.c.project)
        .limit(limit)
    )


def _active_projects() -> Any:
    least = select(func.min(Job.project)).where(READY).scalar_subquery()
    active = select(least.label("project")).cte("active", recursive=True)
    # One step into the index for each project, however many jobs it has.
    following = select(func.min(Job.project)).where(READY, Job.project > active.c.project).scalar_subquery()
    return active.union_all(select(following).where(active.c.project.is_not(None)))


def _least_served() -> Select[Any]:
    active = _active_projects()
    # One that was never served counts from the rear.
    return (
        select(func.min(FairShare.virtual_time))
        .select_from(active)
        .join(FairShare, FairShare.project == active.c.project)
        .where(active.c.project.is_not(None))
    )


def _next_shards(*shards_of: Any) -> Select[Any]:
    projects = projects_by_virtual_time().subquery("line")
    columns = (shard(projects.c.project).label(f"shard_{n}") for n, shard in enumerate(shards_of))
    return select(*columns).select_from(projects).order_by(projects.c.position, projects.c.project)


def _first_due_shard(*which: ColumnElement[bool]) -> Any:
    # Not EXISTS: a planner may turn that into a join of all jobs with all shards.
    due = (
        select(Shard.id)
        .where(
            Shard.job_id == Job.id,
            Shard.state.in_((literal_column("'queued'"), literal_column("'announced'"))),
            Shard.next_run_at <= db_now() - bindparam("waited_s", type_=Double),
            may_run(bindparam("attempts", type_=Integer)),
        )
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )

    def of(project: Any) -> Any:
        return (
            select(due)
            .where(READY, Job.project == project, Job.deleted_at.is_(None), due.is_not(None), *which)
            .order_by(Job.virtual_time, Job.id)
            .limit(1)
            .scalar_subquery()
        )

    return of


def _min_virtual_time(project: Any) -> ColumnElement[int]:
    projects = FairShare.__table__.alias("line_of")
    return func.coalesce(select(projects.c.min_virtual_time).where(projects.c.project == project).scalar_subquery(), 0)


def _greatest(a: Any, b: Any) -> ColumnElement[int]:
    return case((a < b, b), else_=a)


def _least(a: Any, b: Any) -> ColumnElement[int]:
    return case((a < b, a), else_=b)


# Built once: to build a statement costs more than to run it.
_LEAST_SERVED = _least_served()
_NEXT = _next_shards(_first_due_shard())
_STARVED = _next_shards(_first_due_shard(), _first_due_shard(Job.started_at.is_(None)))
_POSITIONS = (
    select(
        Shard.id.label("shard_id"),
        Shard.state,
        Job.id.label("job_id"),
        Job.project,
        _greatest(Job.virtual_time, _min_virtual_time(Job.project)).label("of_job"),
        _greatest(func.coalesce(FairShare.virtual_time, 0), _min_virtual_time(literal_column("''"))).label(
            "of_project"
        ),
        Job.started_at.is_not(None).label("has_started"),
    )
    .join(Job, Job.id == Shard.job_id)
    .outerjoin(FairShare, FairShare.project == Job.project)
)
