"""Dispatch: which shards go into the broker next. In turn over projects, then over their jobs, and never many at once.

Only a small window of shards is rung at any time: a ring says that there is work, and the worker that hears it takes
the shard whose turn it is by then (engine/jobs/execution/next_shard.py). Any process may dispatch; on PostgreSQL an
advisory lock lets one ring at a time, on SQLite the write lock does.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.row_locks import lock_jobs, lock_shards
from engine.jobs.scheduling.fair_share import PROJECTS, READY, may_run, projects_by_virtual_time
from engine.runtime import Runtime
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import Job, Shard, ShardState
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.jobs")

RING_PATIENCE_S = 0.2
DUTY = 0x656D_0001  # the advisory lock's number
RINGS_PER_SLOT = 2
LEAST_WINDOW = 4
# Jobs are looked at a page at a time, the first one small: it nearly always holds what is wanted. Whoever has nothing
# due is blocked, and no page has it again for a while.
FIRST_PAGE_JOBS = 8
PAGE_JOBS = 32
PAGES = 4
WOKEN_AT_ONCE = 500
# Nobody tells dispatch of a shard that is due earlier than it thought: so it never thinks far ahead.
BLOCKED_AT_MOST_S = 15.0


async def dispatch(runtime: Runtime) -> int:
    """Ring the shards whose turn it is; how many were rung. Raises StorageUnavailable."""
    due = _due(runtime.settings.shard_attempts)
    async with runtime.database.read() as connection:
        # Most rounds find nothing to do: they must not take the write lock to learn it.
        room = await _room(connection, runtime.settings.worker_seen_s)
        if not room:
            return 0
        some_wake = (await connection.execute(_BLOCKED_NO_MORE)).first() is not None
    if some_wake:
        await _wake(runtime)
    async with runtime.database.read() as connection:
        turns = await _choose(connection, room, due)
    if not turns.shard_ids and not turns.blocked:
        return 0
    async with runtime.database.write() as connection:
        if not await runtime.database.try_advisory_lock(connection, DUTY):
            return 0
        # Another dispatcher may have been here since.
        room = min(room, await _room(connection, runtime.settings.worker_seen_s))
        rung = await _mark_announced(connection, turns.shard_ids[:room]) if room and turns.shard_ids else []
        if turns.blocked:
            await _block(connection, turns.blocked, due)
    # After the commit: a message must never speak of what is not there yet.
    if rung and not await runtime.notifier.notify(rung):
        async with runtime.database.write() as connection:
            still = await lock_shards(connection, Shard.id.in_(rung), Shard.state == ShardState.RUNG)
            await connection.execute(
                update(Shard).where(Shard.id.in_(still)).values(state=ShardState.QUEUED, rung_at=None)
            )
        return 0
    return len(rung)


async def dispatch_soon(runtime: Runtime) -> asyncio.Task[None]:
    """Dispatch, and wait a moment for it: no caller of ours waits for a slow broker, and the sweep dispatches too."""
    ringing = asyncio.create_task(_dispatch_or_leave_it(runtime))
    runtime.settling.add(ringing)
    ringing.add_done_callback(runtime.settling.discard)
    await asyncio.wait({ringing}, timeout=RING_PATIENCE_S)
    return ringing


async def _dispatch_or_leave_it(runtime: Runtime) -> None:
    try:
        await dispatch(runtime)
    except StorageUnavailable:
        log.warning("dispatch is left to the sweep")
    except Exception:  # what was rung for is done, whatever became of the ring
        log.exception("dispatch broke off")


async def take_turn(runtime: Runtime) -> str | None:
    """The shard whose turn it is, marked as rung though nothing was sent: the caller claims it now."""
    async with runtime.database.write() as connection:
        if not await runtime.database.try_advisory_lock(connection, DUTY):
            return None
        chosen = await _choose(connection, 1, _due(runtime.settings.shard_attempts))
        rung = await _mark_announced(connection, chosen.shard_ids) if chosen.shard_ids else []
    return rung[0] if rung else None


def _due(attempts: int) -> ColumnElement[bool]:
    return and_(Shard.state == ShardState.QUEUED, Shard.next_run_at <= db_now(), may_run(attempts))


async def _room(connection: AsyncConnection, seen_s: float) -> int:
    """How many more shards may be rung: twice the slots of the workers alive, less those that wait there already."""
    slots = (
        select(func.coalesce(func.sum(WorkerProcess.slots), 0))
        .where(WorkerProcess.seen_at > db_now() - seen_s)
        .scalar_subquery()
    )
    rung = select(func.count()).select_from(Shard).where(Shard.state == ShardState.RUNG).scalar_subquery()
    row = (await connection.execute(select(slots.label("slots"), rung.label("rung")))).one()
    return max(0, max(LEAST_WINDOW, RINGS_PER_SLOT * int(row.slots)) - int(row.rung))


@dataclass(frozen=True, slots=True)
class Turns:
    """Shards in the order of their turns, and jobs that were looked at in vain."""

    shard_ids: list[str]
    blocked: list[str]


async def _choose(connection: AsyncConnection, room: int, due: ColumnElement[bool]) -> Turns:
    """The next `room` turns, as if each shard were claimed when it is rung."""
    turns = Turns([], [])
    line = (await connection.execute(projects_by_virtual_time(room + PROJECTS))).all()
    projects = [(row.position, row.project) for row in line]
    heapq.heapify(projects)
    jobs_of: dict[str, list[tuple[int, str, list[Any]]]] = {}
    while projects and len(turns.shard_ids) < room:
        position, project = heapq.heappop(projects)
        if project not in jobs_of:
            jobs_of[project] = await _jobs(connection, project, room, due, turns.blocked)
        jobs = jobs_of[project]
        if not jobs:
            continue
        served, job_id, shards = heapq.heappop(jobs)
        shard = shards.pop(0)
        tokens = shard.tokens or shard.count
        turns.shard_ids.append(shard.id)
        if not shards:
            shards = await _more_of(connection, shard, room, due)
        if shards:
            heapq.heappush(jobs, (served + tokens, job_id, shards))
        heapq.heappush(projects, (position + tokens, project))
    return turns


async def _jobs(
    connection: AsyncConnection, project: str, room: int, due: ColumnElement[bool], blocked: list[str]
) -> list[tuple[int, str, list[Any]]]:
    """Jobs of the project that have a due shard, least served first, each with that shard."""
    first = _shards_of(Job.id, due).with_only_columns(Shard.id).limit(1).correlate(Job).scalar_subquery()
    queued = (
        select(Shard.id)
        .where(Shard.job_id == Job.id, Shard.state == ShardState.QUEUED)
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )
    page = (
        select(Job.id, Job.served_tokens, first.label("shard_id"), queued.label("queued_id"))
        .where(READY, Job.project == project, Job.deleted_at.is_(None))
        .order_by(Job.served_tokens, Job.id)
    )
    found: list[Any] = []
    size = min(room + FIRST_PAGE_JOBS, PAGE_JOBS)
    for _ in range(PAGES):
        rows = (await connection.execute(page.limit(size))).all()
        found += [row for row in rows if row.shard_id is not None]
        blocked += [row.id for row in rows if row.shard_id is None and row.queued_id is not None]
        if len(rows) < size or len(found) >= room:
            break
        size = PAGE_JOBS
        last = rows[-1]
        page = page.where(tuple_(Job.served_tokens, Job.id) > tuple_(last.served_tokens, last.id))
    chosen = found[:room]
    ids = [row.shard_id for row in chosen]
    shards = (await connection.execute(_SHARD.where(Shard.id.in_(ids)))).all() if ids else ()
    by_id = {shard.id: shard for shard in shards}
    # In order already, as a heap is.
    return [(row.served_tokens, row.id, [by_id[row.shard_id]]) for row in chosen if row.shard_id in by_id]


async def _more_of(connection: AsyncConnection, shard: Any, room: int, due: ColumnElement[bool]) -> list[Any]:
    following = _shards_of(shard.job_id, due).where(Shard.seq > shard.seq).limit(room)
    return list((await connection.execute(following)).all())


_SHARD = select(Shard.id, Shard.job_id, Shard.seq, Shard.tokens, Shard.count)
_BLOCKED_NO_MORE = select(Job.id).where(Job.blocked_until <= db_now()).order_by(Job.blocked_until).limit(1)


def _shards_of(job_id: Any, due: ColumnElement[bool]) -> Any:
    return _SHARD.where(Shard.job_id == job_id, due).order_by(Shard.seq)


async def _block(connection: AsyncConnection, job_ids: Sequence[str], due: ColumnElement[bool]) -> None:
    """Pass these jobs over until the first of their queued shards is due."""
    upper_bound = db_now() + BLOCKED_AT_MOST_S
    first = (
        select(func.min(Shard.next_run_at))
        .where(Shard.job_id == Job.id, Shard.state == ShardState.QUEUED, Shard.next_run_at > db_now())
        .correlate(Job)
        .scalar_subquery()
    )
    now_due = select(Shard.id).where(Shard.job_id == Job.id, due).limit(1).correlate(Job).scalar_subquery()
    locked = await lock_jobs(connection, Job.id.in_(job_ids))
    await connection.execute(
        update(Job)
        .where(Job.id.in_(locked), now_due.is_(None))
        .values(blocked_until=case((first < upper_bound, first), else_=upper_bound))
    )


async def _wake(runtime: Runtime) -> None:
    async with runtime.database.write() as connection:
        some = select(Job.id).where(Job.blocked_until <= db_now()).order_by(Job.blocked_until).limit(WOKEN_AT_ONCE)
        woken = await lock_jobs(connection, Job.id.in_((await connection.execute(some)).scalars().all()))
        await connection.execute(update(Job).where(Job.id.in_(woken)).values(blocked_until=None))


async def _mark_announced(connection: AsyncConnection, shard_ids: list[str]) -> list[str]:
    queued = await lock_shards(connection, Shard.id.in_(shard_ids), Shard.state == ShardState.QUEUED)
    rows = (
        await connection.execute(
            update(Shard)
            .where(Shard.id.in_(queued))
            .values(state=ShardState.RUNG, rung_at=db_now())
            .returning(Shard.id)
        )
    ).scalars()
    rung = set(rows)
    return [shard_id for shard_id in shard_ids if shard_id in rung]
