"""Dispatch: keeps as many messages in the broker's queue as there is work for, at most two for each worker slot.

A message says that there is work and names none: the worker that receives it claims the shard that is next by fair
share (engine/jobs/leasing/claim.py). So any process may dispatch at any time, and a message that is lost, doubled or
late costs time only: each round asks the broker how many messages wait, and adds those that are missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Integer, bindparam, case, func, literal, select, true, update

from engine.config.settings import WORKER_SEEN_S
from engine.job_store import JobStore
from engine.jobs.row_locks import lock_jobs
from engine.jobs.scheduling.fair_share import READY, is_due
from engine.process.background import logging_errors
from engine.queue.broker import Notifier
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import Job, Shard, ShardState
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.jobs")

PUBLISH_WAIT_S = 0.2
MESSAGES_PER_SLOT = 2
MIN_MESSAGES = 4  # without a live worker, so that the first one to start finds work
# Jobs with queued shards that are read beyond the messages: those without a due shard are deferred, and others
# are read in their place.
EXTRA_JOBS = 8
PAGES = 4
JOBS_PER_UNBLOCK = 500
# Nothing lowers the end of a deferral when a shard becomes due earlier, so deferrals are short.
MAX_DEFER_S = 15.0


@dataclass(frozen=True, slots=True)
class _Work:
    """What one round found: messages to keep in the queue, jobs to defer, and whether a deferral is over."""

    messages: int
    idle_jobs: Sequence[str]
    has_deferral_over: bool


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Notifies the workers of due shards. `background`: the process's tasks that may outlive the request."""

    store: JobStore
    notifier: Notifier
    background: set[asyncio.Task[None]]

    async def dispatch(self) -> int:
        """Top up the messages in the queue. Returns how many should wait there: 0 without work, or without a broker.

        Raises StorageUnavailable.
        """
        work = await _find_work(self.store)
        if work.has_deferral_over:
            await _end_deferrals(self.store)
            work = await _find_work(self.store)
        for _ in range(PAGES):
            if not work.idle_jobs:
                break
            await _defer_jobs(self.store, work.idle_jobs)
            if work.messages or len(work.idle_jobs) < EXTRA_JOBS:
                break
            work = await _find_work(self.store)
        return work.messages if work.messages and await self.notifier.notify(work.messages) else 0

    async def dispatch_soon(self) -> asyncio.Task[None]:
        """Dispatch in the background and wait for at most PUBLISH_WAIT_S: no request waits for a slow broker."""
        dispatching = asyncio.create_task(self._dispatch_or_log())
        self.background.add(dispatching)
        dispatching.add_done_callback(self.background.discard)
        await asyncio.wait({dispatching}, timeout=PUBLISH_WAIT_S)
        return dispatching

    async def _dispatch_or_log(self) -> None:
        try:
            with logging_errors("dispatch broke off"):  # the caller's work is committed; only the notification failed
                await self.dispatch()
        except StorageUnavailable:
            log.warning("dispatch is left to the scheduler")


async def _find_work(store: JobStore) -> _Work:
    values = {"attempts": store.settings.shard_attempts}
    async with store.database.read() as connection:
        rows = (await connection.execute(_WORK, values)).all()
    # A job's running shards are counted too: a message too many is handled without effect.
    shards = sum(row.open_shards for row in rows if row.due_id is not None)
    return _Work(
        messages=min(shards, max(MIN_MESSAGES, MESSAGES_PER_SLOT * int(rows[0].slots))),
        idle_jobs=[row.id for row in rows if row.id is not None and row.due_id is None],
        has_deferral_over=rows[0].deferred_id is not None,
    )


_DUE = is_due(bindparam("attempts", type_=Integer))


def _first_shard(condition: ColumnElement[bool]) -> Any:
    return select(Shard.id).where(Shard.job_id == Job.id, condition).limit(1).correlate(Job).scalar_subquery()


def _work_statement() -> Any:
    """One row at least. Each has the slots of live workers; those with an id are runnable jobs with a queued shard."""
    slots = (
        select(func.coalesce(func.sum(WorkerProcess.slots), 0))
        .where(WorkerProcess.seen_at > db_now() - WORKER_SEEN_S)
        .scalar_subquery()
    )
    deferred = select(Job.id).where(Job.not_before <= db_now()).order_by(Job.not_before).limit(1).scalar_subquery()
    jobs = (
        select(Job.id, Job.open_shards, _first_shard(_DUE).label("due_id"))
        .where(READY, Job.deleted_at.is_(None), _first_shard(Shard.state == ShardState.QUEUED).is_not(None))
        .limit(select(slots * MESSAGES_PER_SLOT + MIN_MESSAGES + EXTRA_JOBS).scalar_subquery())
        .subquery("page")
    )
    always = select(literal(1).label("one")).subquery("always")
    return select(slots.label("slots"), deferred.label("deferred_id"), jobs).select_from(always.outerjoin(jobs, true()))


_WORK = _work_statement()


async def _defer_jobs(store: JobStore, job_ids: Sequence[str]) -> None:
    """Let claims skip these jobs until their first queued shard is due, at most for MAX_DEFER_S."""
    upper_bound = db_now() + MAX_DEFER_S
    first = (
        select(func.min(Shard.next_run_at))
        .where(Shard.job_id == Job.id, Shard.state == ShardState.QUEUED, Shard.next_run_at > db_now())
        .correlate(Job)
        .scalar_subquery()
    )
    async with store.database.write() as connection:
        locked = await lock_jobs(connection, Job.id.in_(job_ids), READY)
        await connection.execute(
            update(Job)
            .where(Job.id.in_(locked), _first_shard(_DUE).is_(None))
            .values(not_before=case((first < upper_bound, first), else_=upper_bound)),
            {"attempts": store.settings.shard_attempts},
        )


async def _end_deferrals(store: JobStore) -> None:
    async with store.database.write() as connection:
        over = select(Job.id).where(Job.not_before <= db_now()).order_by(Job.not_before).limit(JOBS_PER_UNBLOCK)
        locked = await lock_jobs(connection, Job.id.in_((await connection.execute(over)).scalars().all()))
        await connection.execute(update(Job).where(Job.id.in_(locked)).values(not_before=None))
