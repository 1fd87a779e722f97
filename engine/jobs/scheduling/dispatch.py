"""Dispatch: announces the next shards to the workers, by fair share over projects and their jobs, a few at a time.

Only a small window of shards is announced at any time. A message says that there is work, and the worker that receives
it claims the shard that is next by then (engine/jobs/execution/message_handler.py). Any process may dispatch: on
PostgreSQL an advisory lock lets one process publish at a time, on SQLite the write lock does.
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
from engine.jobs.scheduling.fair_share import MAX_PROJECTS, READY, may_run, projects_by_virtual_time
from engine.runtime import Runtime
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import Job, Shard, ShardState
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.jobs")

PUBLISH_WAIT_S = 0.2
DISPATCH_LOCK_ID = 0x656D_0001  # the advisory lock's number
ANNOUNCED_PER_SLOT = 2
MIN_WINDOW = 4
# Jobs are read in pages. The first page is small because it nearly always suffices. A job without a due shard is
# deferred, so that later pages do not contain it for a while.
FIRST_PAGE_JOBS = 8
PAGE_JOBS = 32
PAGES = 4
JOBS_PER_UNBLOCK = 500
# Nothing lowers the end of a deferral when a shard becomes due earlier, so deferrals are short.
MAX_DEFER_S = 15.0


async def dispatch(runtime: Runtime) -> int:
    """Announce the next shards by fair share. Returns how many. Raises StorageUnavailable."""
    due = _due(runtime.settings.shard_attempts)
    async with runtime.database.read() as connection:
        # Most rounds find nothing to do, so the reads come before the write lock.
        window, has_due_jobs = await _free_window(connection, runtime.settings.worker_seen_s)
    if not window:
        return 0
    if has_due_jobs:
        await _unblock_due(runtime)
    async with runtime.database.read() as connection:
        selection = await _select(connection, window, due)
    if not selection.shard_ids and not selection.deferred:
        return 0
    async with runtime.database.write() as connection:
        if not await runtime.database.try_advisory_lock(connection, DISPATCH_LOCK_ID):
            return 0
        # Another process may have dispatched meanwhile.
        window = min(window, (await _free_window(connection, runtime.settings.worker_seen_s))[0])
        announced = (
            await _mark_announced(connection, selection.shard_ids[:window]) if window and selection.shard_ids else []
        )
        if selection.deferred:
            await _defer_jobs(connection, selection.deferred, due)
    # Published after the commit: a message must not refer to a state that is not committed.
    if announced and not await runtime.notifier.notify(announced):
        async with runtime.database.write() as connection:
            unpublished = await lock_shards(connection, Shard.id.in_(announced), Shard.state == ShardState.ANNOUNCED)
            await connection.execute(
                update(Shard).where(Shard.id.in_(unpublished)).values(state=ShardState.QUEUED, announced_at=None)
            )
        return 0
    return len(announced)


async def dispatch_soon(runtime: Runtime) -> asyncio.Task[None]:
    """Dispatch in the background and wait for at most PUBLISH_WAIT_S, so that no request waits for a slow broker."""
    dispatching = asyncio.create_task(_dispatch_or_log(runtime))
    runtime.settling.add(dispatching)
    dispatching.add_done_callback(runtime.settling.discard)
    await asyncio.wait({dispatching}, timeout=PUBLISH_WAIT_S)
    return dispatching


async def _dispatch_or_log(runtime: Runtime) -> None:
    try:
        await dispatch(runtime)
    except StorageUnavailable:
        log.warning("dispatch is left to the sweep")
    except Exception:  # the caller's work is committed; only the announcement failed
        log.exception("dispatch broke off")


async def reserve_next(runtime: Runtime) -> str | None:
    """Mark the next shard as announced, without a message: the caller claims it now. Raises StorageUnavailable."""
    async with runtime.database.write() as connection:
        if not await runtime.database.try_advisory_lock(connection, DISPATCH_LOCK_ID):
            return None
        selected = await _select(connection, 1, _due(runtime.settings.shard_attempts))
        announced = await _mark_announced(connection, selected.shard_ids) if selected.shard_ids else []
    return announced[0] if announced else None


def _due(attempts: int) -> ColumnElement[bool]:
    return and_(Shard.state == ShardState.QUEUED, Shard.next_run_at <= db_now(), may_run(attempts))


async def _free_window(connection: AsyncConnection, alive_within_s: float) -> tuple[int, bool]:
    """How many more shards may be announced, and whether the deferral of a job is over.

    The window: twice the slots of the live workers, less the shards already announced.
    """
    slots = (
        select(func.coalesce(func.sum(WorkerProcess.slots), 0))
        .where(WorkerProcess.seen_at > db_now() - alive_within_s)
        .scalar_subquery()
    )
    announced = select(func.count()).select_from(Shard).where(Shard.state == ShardState.ANNOUNCED).scalar_subquery()
    columns = (slots.label("slots"), announced.label("announced"), _DEFERRAL_OVER.label("due_job_id"))
    row = (await connection.execute(select(*columns))).one()
    window = max(0, max(MIN_WINDOW, ANNOUNCED_PER_SLOT * int(row.slots)) - int(row.announced))
    return window, row.due_job_id is not None


@dataclass(frozen=True, slots=True)
class Selection:
    """Shards in their order of service, and jobs without a due shard."""

    shard_ids: list[str]
    deferred: list[str]


async def _select(connection: AsyncConnection, window: int, due: ColumnElement[bool]) -> Selection:
    """The next `window` shards, as if each were claimed when it is announced."""
    selection = Selection([], [])
    rows = (await connection.execute(projects_by_virtual_time(window + MAX_PROJECTS))).all()
    projects = [(row.position, row.project) for row in rows]
    heapq.heapify(projects)
    jobs_of: dict[str, list[tuple[int, str, list[Any]]]] = {}
    while projects and len(selection.shard_ids) < window:
        position, project = heapq.heappop(projects)
        if project not in jobs_of:
            jobs_of[project] = await _jobs(connection, project, window, due, selection.deferred)
        jobs = jobs_of[project]
        if not jobs:
            continue
        virtual_time, job_id, shards = heapq.heappop(jobs)
        shard = shards.pop(0)
        tokens = shard.tokens or shard.count
        selection.shard_ids.append(shard.id)
        if not shards:
            shards = await _more_of(connection, shard, window, due)
        if shards:
            heapq.heappush(jobs, (virtual_time + tokens, job_id, shards))
        heapq.heappush(projects, (position + tokens, project))
    return selection


async def _jobs(
    connection: AsyncConnection, project: str, window: int, due: ColumnElement[bool], deferred: list[str]
) -> list[tuple[int, str, list[Any]]]:
    """Jobs of the project with a due shard, by virtual time, each with that shard. Adds the others to `blocked`."""
    first = _shards_of(Job.id, due).with_only_columns(Shard.id).limit(1).correlate(Job).scalar_subquery()
    queued = (
        select(Shard.id)
        .where(Shard.job_id == Job.id, Shard.state == ShardState.QUEUED)
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )
    page = (
        select(Job.id, Job.virtual_time, first.label("shard_id"), queued.label("queued_id"))
        .where(READY, Job.project == project, Job.deleted_at.is_(None))
        .order_by(Job.virtual_time, Job.id)
    )
    found: list[Any] = []
    size = min(window + FIRST_PAGE_JOBS, PAGE_JOBS)
    for _ in range(PAGES):
        rows = (await connection.execute(page.limit(size))).all()
        found += [row for row in rows if row.shard_id is not None]
        deferred += [row.id for row in rows if row.shard_id is None and row.queued_id is not None]
        if len(rows) < size or len(found) >= window:
            break
        size = PAGE_JOBS
        last = rows[-1]
        page = page.where(tuple_(Job.virtual_time, Job.id) > tuple_(last.virtual_time, last.id))
    selected = found[:window]
    ids = [row.shard_id for row in selected]
    shards = (await connection.execute(_SHARD.where(Shard.id.in_(ids)))).all() if ids else ()
    by_id = {shard.id: shard for shard in shards}
    # A sorted list is a valid heap.
    return [(row.virtual_time, row.id, [by_id[row.shard_id]]) for row in selected if row.shard_id in by_id]


async def _more_of(connection: AsyncConnection, shard: Any, window: int, due: ColumnElement[bool]) -> list[Any]:
    following = _shards_of(shard.job_id, due).where(Shard.seq > shard.seq).limit(window)
    return list((await connection.execute(following)).all())


_SHARD = select(Shard.id, Shard.job_id, Shard.seq, Shard.tokens, Shard.count)
_DEFERRAL_OVER = select(Job.id).where(Job.not_before <= db_now()).order_by(Job.not_before).limit(1).scalar_subquery()


def _shards_of(job_id: Any, due: ColumnElement[bool]) -> Any:
    return _SHARD.where(Shard.job_id == job_id, due).order_by(Shard.seq)


async def _defer_jobs(connection: AsyncConnection, job_ids: Sequence[str], due: ColumnElement[bool]) -> None:
    """Defer these jobs until their first queued shard is due, at most by MAX_DEFER_S."""
    upper_bound = db_now() + MAX_DEFER_S
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
        .values(not_before=case((first < upper_bound, first), else_=upper_bound))
    )


async def _unblock_due(runtime: Runtime) -> None:
    async with runtime.database.write() as connection:
        due_jobs = select(Job.id).where(Job.not_before <= db_now()).order_by(Job.not_before).limit(JOBS_PER_UNBLOCK)
        unblocked = await lock_jobs(connection, Job.id.in_((await connection.execute(due_jobs)).scalars().all()))
        await connection.execute(update(Job).where(Job.id.in_(unblocked)).values(not_before=None))


async def _mark_announced(connection: AsyncConnection, shard_ids: list[str]) -> list[str]:
    queued = await lock_shards(connection, Shard.id.in_(shard_ids), Shard.state == ShardState.QUEUED)
    rows = (
        await connection.execute(
            update(Shard)
            .where(Shard.id.in_(queued))
            .values(state=ShardState.ANNOUNCED, announced_at=db_now())
            .returning(Shard.id)
        )
    ).scalars()
    announced = set(rows)
    return [shard_id for shard_id in shard_ids if shard_id in announced]
