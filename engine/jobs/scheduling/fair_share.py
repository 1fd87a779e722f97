"""Fair share: the order in which projects and jobs are served, in tokens.

Start-time fair queuing on two levels: projects share the workers equally, and the jobs of a project share its part. A
claim adds the tokens of the shard to the virtual times of its job and project, and the lowest virtual time is served
next. A new job starts in the middle of its project's jobs, and a project or job that was idle at their minimum, with
neither credit nor debt (docs/decisions/0011-fair-shares.md).

Every query here is answered from indexes at a cost that does not depend on the number of jobs: it reads active projects
and the few jobs of each with the lowest virtual time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
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
    or_,
    select,
    union,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.storage.database import Database
from models.base import db_now, greatest, least
from models.job import FairShare, Job, Shard
from models.outage import RouteOutage

# A literal, not a bound parameter: a partial index serves only a statement that contains its predicate.
READY = and_(Job.status == literal_column("'in_progress'"), Job.not_before.is_(None))
ALL_PROJECTS = ""
# Projects that are read, by virtual time. A project among them without a due shard has a running one.
MAX_PROJECTS = 32
MAX_COUNTED_JOBS = 100
# Projects whose starved shards a running shard is compared with: few, so that a planner looks each of them up.
MAX_STARVED = 8


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Virtual times of a shard's job and project, in tokens. The lowest is served first."""

    shard_id: str
    state: str
    job_id: str
    project: str
    of_job: int
    of_project: int
    has_started: bool
    job_status: str

    def precedes(self, other: QueuePosition, *, within: int = 0) -> bool:
        """True when this position is served before the other, or at most `within` tokens later."""
        if self.project == other.project:
            return self.of_job < other.of_job + within
        return self.of_project < other.of_project + within


def may_run(attempts: Any, shard: Any = Shard) -> ColumnElement[bool]:
    """Condition on a shard: not blocked, and below its limits of attempts and crashes (else the sweep handles it)."""
    return and_(shard.attempt < attempts, shard.worker_crashes < shard.crash_limit, shard.blocked_by.is_(None))


def is_due(attempts: Any, shard: Any = Shard, *, waited_s: Any = 0.0) -> ColumnElement[bool]:
    """Condition on a shard: a worker may claim it now, and could for `waited_s`. `attempts`: the limit of a shard."""
    # A literal, not a bound parameter: planners know how many shards are queued.
    queued = shard.state == literal_column("'queued'")
    return and_(queued, shard.next_run_at <= db_now() - waited_s, may_run(attempts, shard))


async def next_shard(connection: AsyncConnection, attempts: int) -> str | None:
    """Id of the due shard that is served next. `attempts`: the limit of a shard."""
    return (await connection.execute(select(next_shard_id(attempts)))).scalar_one_or_none()


def next_shard_id(attempts: int) -> ColumnElement[str]:
    """The same as an SQL expression."""
    return _NEXT.params(waited_s=0.0, attempts=attempts).scalar_subquery()


async def starved_shards(connection: AsyncConnection, attempts: int, waited_s: float) -> list[str]:
    """Shards due for `waited_s` and not claimed. For each project: of its next job, and of its next unstarted job."""
    found = (await connection.execute(_STARVED, {"waited_s": waited_s, "attempts": attempts})).all()
    return [shard_id for row in found for shard_id in dict.fromkeys(row) if shard_id is not None]


async def watch(
    connection: AsyncConnection, shard_ids: Sequence[str], attempts: int, waited_s: float
) -> tuple[dict[str, QueuePosition], int]:
    """Positions by id of these shards and of those due for `waited_s`, in the order of service; and, as it is read by
    the same statement, the number of outages of routes."""
    values = {"watched": list(shard_ids), "waited_s": waited_s, "attempts": attempts}
    rows = (await connection.execute(_WATCH, values)).all()
    found = (QueuePosition(**{name: row._mapping[name] for name in _POSITION_FIELDS}) for row in rows)
    return {position.shard_id: position for position in found}, rows[0].outages if rows else 1


async def advance(database: Database, connection: AsyncConnection, job_id: str, tokens: int) -> None:
    """Add the tokens of a claimed shard to the virtual times of its job and project, at the end of the claim's
    transaction."""
    job = (
        await connection.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(
                virtual_time=greatest(Job.virtual_time, _min_virtual_time(Job.project)) + tokens,
                shard_claims=Job.shard_claims + 1,
                started_at=func.coalesce(Job.started_at, db_now()),
                waiting_on=case((Job.waiting_on == "fairness", None), else_=Job.waiting_on),
            )
            .returning(Job.project, Job.virtual_time)
        )
    ).one()
    start = job.virtual_time - tokens
    runnable = select(Job.id).where(READY, Job.project == job.project)
    # The minimum of the other jobs: this one may have been claimed out of order.
    least_of_others = select(func.min(Job.virtual_time)).where(READY, Job.project == job.project, Job.id != job_id)
    # The start of future jobs advances by tokens / runnable jobs, so that a stream of new jobs cannot starve an old
    # one. It stays below the end of the current shard, whose unused tokens may be refunded.
    counted = select(func.count().label("jobs")).select_from(runnable.limit(MAX_COUNTED_JOBS).subquery()).subquery()
    minimum = least(func.coalesce(least_of_others.scalar_subquery(), start), start)
    step = select(case((counted.c.jobs > 1, tokens // counted.c.jobs), else_=0)).scalar_subquery()
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
                    "virtual_time": greatest(share.virtual_time, global_minimum) + tokens,
                    "min_virtual_time": greatest(share.min_virtual_time, minimum),
                    "start_virtual_time": greatest(least(share.start_virtual_time + step, start + tokens), start),
                },
            )
            .returning(FairShare.virtual_time, global_minimum.label("global_minimum"))
        )
    ).one()
    await _advance_global_clock(database, connection, advanced.virtual_time - tokens, advanced.global_minimum, tokens)


async def _advance_global_clock(
    database: Database, connection: AsyncConnection, start: int, global_minimum: int, tokens: int
) -> None:
    """Raise the minimum of all projects once it lags by a shard; `start`: where the claiming project stood before."""
    # The global clock is one row. Writing it at each claim would serialize all claims, so it may lag by one shard. It
    # never passes an active project, which would lose the refund of a released shard.
    if start - global_minimum < max(tokens, 1):
        return
    minimum = (await connection.execute(_LEAST_SERVED)).scalar_one_or_none()
    if minimum is None or minimum - global_minimum < max(tokens, 1):
        return
    share = FairShare.__table__.c
    await connection.execute(
        database.insert(FairShare)
        .values(project=ALL_PROJECTS, virtual_time=0, min_virtual_time=minimum, start_virtual_time=minimum)
        .on_conflict_do_update(
            index_elements=["project"], set_={"min_virtual_time": minimum}, where=share.min_virtual_time < minimum
        )
    )


async def refund(connection: AsyncConnection, job_id: str, tokens: int) -> None:
    """Take the tokens of unprocessed inputs of a released shard off the virtual times of its job and project.

    Both minimums are lowered with them where they have advanced, so that no waiting job or project is below them.
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
                min_virtual_time=least(FairShare.min_virtual_time, job.virtual_time),
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
    """Virtual time at which a new job of the project starts."""
    share = select(FairShare.start_virtual_time).where(FairShare.project == project)
    return func.coalesce(share.scalar_subquery(), 0)


def projects_by_virtual_time(limit: int = MAX_PROJECTS) -> Select[Any]:
    """Projects with a runnable job in order of their virtual time: columns `project`, `position`."""
    active = _active_projects()
    position = greatest(func.coalesce(FairShare.virtual_time, 0), _min_virtual_time(literal_column("''")))
    return (
        select(active.c.project, position.label("position"))
        .outerjoin(FairShare, FairShare.project == active.c.project)
        .where(active.c.project.is_not(None))
        .order_by(position, active.c.project)
        .limit(limit)
    )


def _active_projects() -> Any:
    first = select(func.min(Job.project)).where(READY).scalar_subquery()
    active = select(first.label("project")).cte("active", recursive=True)
    # One index lookup per project, whatever the number of its jobs.
    following = select(func.min(Job.project)).where(READY, Job.project > active.c.project).scalar_subquery()
    return active.union_all(select(following).where(active.c.project.is_not(None)))


def _least_served() -> Select[Any]:
    active = _active_projects()
    # A project without a row counts from the minimum.
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
            is_due(bindparam("attempts", type_=Integer), waited_s=bindparam("waited_s", type_=Double)),
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


# Built once: building a statement costs more than running it.
_LEAST_SERVED = _least_served()
_BY_PROJECT = _next_shards(_first_due_shard()).subquery("by_project")
_NEXT = select(_BY_PROJECT.c.shard_0).where(_BY_PROJECT.c.shard_0.is_not(None)).limit(1)
_STARVED = _next_shards(_first_due_shard(), _first_due_shard(Job.started_at.is_(None)))
_POSITIONS = (
    select(
        Shard.id.label("shard_id"),
        Shard.state,
        Job.id.label("job_id"),
        Job.project,
        greatest(Job.virtual_time, _min_virtual_time(Job.project)).label("of_job"),
        greatest(func.coalesce(FairShare.virtual_time, 0), _min_virtual_time(literal_column("''"))).label("of_project"),
        Job.started_at.is_not(None).label("has_started"),
        case((Job.deleted_at.is_(None), Job.status), else_="deleted").label("job_status"),
    )
    .join(Job, Job.id == Shard.job_id)
    .outerjoin(FairShare, FairShare.project == Job.project)
)
_POSITION_FIELDS = tuple(each.name for each in fields(QueuePosition))


def _watch() -> Select[Any]:
    found = _STARVED.cte("found")
    is_starved = or_(*(column.is_not(None) for column in found.columns))
    starved = select(found).where(is_starved).limit(MAX_STARVED).cte("starved")
    watched = select(Shard.id).where(Shard.id.in_(bindparam("watched", expanding=True)))
    ids = union(watched, *(select(column) for column in starved.columns))
    outages = select(func.count()).select_from(RouteOutage).scalar_subquery().label("outages")
    return (
        _POSITIONS.add_columns(outages)
        .where(Shard.id.in_(ids))
        .order_by(literal_column("of_project"), Job.project, literal_column("of_job"), Job.id)
    )


_WATCH = _watch()
