"""Sweep: the final authority. Every few seconds, from any process, in any number, it mends what crashes left behind.

Nothing else need succeed for a job to end: lost messages, dead workers, half-read corpora and unfinished finishes are
all found here, by what the database says and by its clock.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select, update

from engine.jobs.control.end_early import close_shards, end_early
from engine.jobs.execution.provider_wait import BLOCKED, wake
from engine.jobs.ingest.broken_uploads import ABANDONED, end_abandoned_uploads
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.blocked import FREE_AGAIN, free_blocked
from engine.jobs.maintenance.clock_steps import watch_clock
from engine.jobs.maintenance.crashes import CRASHING, crashing, is_guilty, of_running_job, requeue_lost
from engine.jobs.maintenance.purge import DOOMED, EXPIRED, OLD_KEY, OLD_WORKER, purge
from engine.jobs.recording.completion import FINAL_STATUS, NO_OPEN_SHARD, end_columns, recount
from engine.jobs.recording.orphaned_calls import note_lost_calls
from engine.jobs.recording.record import fail_rest
from engine.jobs.recording.split_shard import halve
from engine.jobs.recording.spool_replay import replay
from engine.jobs.row_locks import lock_jobs, lock_shards
from engine.jobs.scheduling.dispatch import dispatch
from engine.queue import worker_heartbeats
from engine.runtime import Runtime
from models.base import db_now
from models.errors import EmbedmillError, StorageUnavailable
from models.job import (
    FINISHED,
    OPEN_SHARD,
    UNDER_WAY,
    AmbiguousCall,
    IdempotencyKey,
    Job,
    JobStatus,
    Shard,
    ShardState,
)
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.sweep")

AT_ONCE = 50


class WorkerLost(EmbedmillError):
    code = "worker_lost"
    retryable = True


async def sweep(runtime: Runtime) -> None:
    """One round of every duty that has something to do. Raises StorageUnavailable."""
    await watch_clock(runtime)
    # First: what was paid for must be in its place before anybody may claim the shard again.
    for duty in (replay, note_lost_calls, reclaim_dead_workers):
        await _do(runtime, duty)
    due = await _due(runtime)
    due["split_crashing_shards"] |= due["requeue_expired"]  # which may bring the loss that is one too many
    for duty in (
        requeue_expired,
        requeue_unanswered,
        split_crashing_shards,
        free_blocked,
        finish_jobs,
        end_abandoned_uploads,
        end_overdue_jobs,
        wake,
        purge,
    ):
        if due[duty.__name__]:
            await _do(runtime, duty)
    await runtime.database.checkpoint_wal()
    await dispatch(runtime)


async def _do(runtime: Runtime, duty: Callable[[Runtime], Awaitable[Any]]) -> None:
    """One duty that fails must not keep the others from being done, round after round."""
    try:
        await duty(runtime)
    except StorageUnavailable:
        raise
    except Exception:
        log.exception("a duty of the sweep failed", extra={"code": duty.__name__})


async def _due(runtime: Runtime) -> dict[str, bool]:
    """Which duties have something to do, in one statement that locks nothing: nearly always none has.

    Each question is answered from an index that leads to what is out of order, past all that is in order.
    """
    settings = runtime.settings
    # Ordered, and the first only: a planner that expects many matches would else read the table from its beginning.
    questions = {
        "requeue_expired": select(Shard.id).where(Shard.state == ShardState.RUNNING, Shard.lease_until < db_now()),
        "requeue_unanswered": select(Shard.id).where(
            Shard.state == ShardState.RUNG, Shard.rung_at < db_now() - settings.ring_again_s
        ),
        "split_crashing_shards": select(Shard.id).where(CRASHING, of_running_job()),
        "fail_the_spent": select(Shard.id).where(_spent(runtime), of_running_job()),
        "free_blocked": select(Shard.id).where(FREE_AGAIN),
        "finish_jobs": select(Job.id).where(_UNFINISHED).order_by(Job.status, Job.open_shards),
        "end_cancelling": select(Job.id).where(Job.status == JobStatus.CANCELLING),
        "close_stray_shards": _STRAY.order_by(Job.status, Job.open_shards),
        "end_abandoned_uploads": select(Job.id).where(ABANDONED).order_by(Job.intake_until),
        "end_overdue_jobs": select(Job.id).where(_OVERDUE).order_by(Job.expires_at),
        "wake": select(Job.id).where(BLOCKED).order_by(Job.blocked_until),
        "purge": select(Job.id).where(DOOMED).order_by(Job.deleted_at),
        "expire": select(Job.id).where(EXPIRED).order_by(Job.expires_at),
        "forget_keys": select(IdempotencyKey.key).where(OLD_KEY).order_by(IdempotencyKey.expires_at),
        "forget_workers": select(WorkerProcess.id).where(OLD_WORKER),
        "forget_calls": select(AmbiguousCall.id)
        .where(AmbiguousCall.at < db_now() - settings.ambiguous_retention_days * 86400.0)
        .order_by(AmbiguousCall.at),
    }
    columns = [question.limit(1).scalar_subquery().is_not(None).label(name) for name, question in questions.items()]
    async with runtime.database.read() as connection:
        row = (await connection.execute(select(*columns))).one()
    due = dict(row._mapping)
    due["split_crashing_shards"] |= due.pop("fail_the_spent")
    due["finish_jobs"] |= due.pop("end_cancelling") | due.pop("close_stray_shards")
    for name in ("expire", "forget_keys", "forget_workers", "forget_calls"):
        due["purge"] |= due.pop(name)
    return due


_UNFINISHED = and_(Job.status.in_(UNDER_WAY), Job.open_shards < 1, Job.total.is_not(None))
# Where workers hold all that is left of a job, it waits so long for what they bring: they may be waiting themselves.
LANDING_S = 600.0
_OVERDUE = and_(
    Job.expires_at < db_now(),
    Job.status.in_((JobStatus.VALIDATING, *UNDER_WAY)),
    Job.deleted_at.is_(None),
    or_(
        Job.expires_at < db_now() - LANDING_S,
        Job.total.is_(None),
        select(Shard.id)
        .where(Shard.job_id == Job.id, Shard.state.in_(sorted(OPEN_SHARD - {ShardState.RUNNING})))
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
        .is_not(None),
    ),
)
# A shard of a job that failed may have come back from a lost worker: nobody would claim it.
# Asked of the jobs, for few of those have ended with open shards, while there may be a million queued shards.
_STRAY = select(Job.id).where(
    Job.status.in_(FINISHED),
    Job.open_shards > 0,
    select(Shard.id)
    .where(Shard.job_id == Job.id, Shard.state.in_((ShardState.QUEUED, ShardState.RUNG)))
    .limit(1)
    .correlate(Job)
    .scalar_subquery()
    .is_not(None),
)


async def requeue_expired(runtime: Runtime) -> None:
    """Shards whose worker has stopped renewing its lease."""
    async with runtime.database.write() as connection:
        lost = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.lease_until < db_now())
        rows = await requeue_lost(connection, lost, "the worker was lost")
    for row in rows:
        log.warning("a lease ran out", extra={"shard_id": row.id, "job_id": row.job_id})


async def reclaim_dead_workers(runtime: Runtime) -> None:
    """Shards and rows of worker processes of this machine that are no more: no need to wait for their leases."""
    async with runtime.database.read() as connection:
        seen = await connection.execute(
            select(Shard.worker)
            .where(Shard.state == ShardState.RUNNING, Shard.worker.is_not(None))
            .union(select(WorkerProcess.id))
        )
        dead = [worker for worker in seen.scalars() if worker and worker_heartbeats.is_dead_local_process(worker)]
    if not dead:
        return
    async with runtime.database.write() as connection:
        await connection.execute(delete(WorkerProcess).where(WorkerProcess.id.in_(dead)))
        held = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.worker.in_(dead))
        freed = await requeue_lost(connection, held, "the worker died")
    log.warning("worker processes died", extra={"count": len(dead), "freed": len(freed)})


async def requeue_unanswered(runtime: Runtime) -> None:
    """Shards that were rung and never claimed: the message was lost, or every worker is busy."""
    async with runtime.database.write() as connection:
        unheard = await lock_shards(
            connection, Shard.state == ShardState.RUNG, Shard.rung_at < db_now() - runtime.settings.ring_again_s
        )
        await connection.execute(
            update(Shard).where(Shard.id.in_(unheard)).values(state=ShardState.QUEUED, rung_at=None)
        )


async def split_crashing_shards(runtime: Runtime) -> None:
    """Shards that took worker after worker down with them are halved; a single input is tried, and fails if guilty."""
    deadly = crashing(runtime.settings.shard_attempts)
    found: list[Any] = []
    async with runtime.database.read() as connection:
        for which in (CRASHING, _spent(runtime)):
            columns = select(Shard.id, Shard.lost, Shard.lost_limit)
            found += (await connection.execute(columns.where(which, of_running_job()).limit(AT_ONCE))).all()
    for shard_id, lost, limit in found:
        # Another sweep may have halved it since: then it is not deadly any more.
        halves = await halve(runtime, shard_id, deadly) if lost >= limit else 1
        if halves == 2:
            log.warning("a shard that lost its workers was halved", extra={"shard_id": shard_id, "count": lost})
        if halves != 1 or (lost >= limit and not await is_guilty(runtime, shard_id)):
            continue
        held = await claims.claim(runtime, shard_id, "sweep")
        if held is not None:
            log.warning("a shard's attempts are spent", extra={"job_id": held.job_id, "shard_id": shard_id})
            await fail_rest(runtime, held, WorkerLost("workers were lost again and again on this part of the job"))


def _spent(runtime: Runtime) -> ColumnElement[bool]:
    return and_(Shard.state == ShardState.QUEUED, Shard.attempt >= runtime.settings.shard_attempts)


async def finish_jobs(runtime: Runtime) -> None:
    """Jobs that nothing is left to do for, yet are not finished."""
    async with runtime.database.write() as connection:
        unfinished = await lock_jobs(connection, _UNFINISHED)
        miscounted = (
            await connection.execute(select(Job.id).where(Job.id.in_(unfinished), ~NO_OPEN_SHARD).order_by(Job.id))
        ).scalars()
        for job_id in list(miscounted):
            await recount(connection, job_id)
            unfinished.remove(job_id)
        await connection.execute(
            update(Job)
            .where(Job.id.in_(unfinished))
            .values(status=FINAL_STATUS, version=Job.version + 1, **end_columns(runtime.settings))
        )
        cancelling = list(
            (await connection.execute(select(Job.id).where(Job.status == JobStatus.CANCELLING))).scalars()
        )
    for job_id in cancelling:
        await close_shards(runtime, job_id)
    async with runtime.database.read() as connection:
        stray = list((await connection.execute(_STRAY.limit(AT_ONCE))).scalars())
    for job_id in stray:
        await close_shards(runtime, job_id)


async def end_overdue_jobs(runtime: Runtime) -> None:
    """Jobs that have not ended by their deadline: paused and forgotten, or waiting for what never comes."""
    async with runtime.database.read() as connection:
        ids = list((await connection.execute(select(Job.id).where(_OVERDUE).limit(AT_ONCE))).scalars())
    days = runtime.settings.job_deadline_days
    for job_id in ids:
        log.warning("a job expired before it had ended", extra={"job_id": job_id})
        message = f"the job had not ended within {days:g} days: what is done of it can be read; submit the rest again"
        await end_early(runtime, job_id, JobStatus.EXPIRED, "job_expired", message)
