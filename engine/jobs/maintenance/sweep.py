"""Sweep: the final authority. Every few seconds, from any process, in any number, it mends what crashes left behind.

Nothing else need succeed for a job to end: lost messages, dead workers, half-read corpora and unfinished finishes are
all found here, by what the database says and by its clock.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select, update

from engine.jobs.control.termination import cancel_idle_shards, terminate
from engine.jobs.execution.outage_waits import WAITING_FOR_PROVIDER, resume_recovered_jobs
from engine.jobs.ingest.broken_uploads import ABANDONED, end_abandoned_uploads
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.blocked import NO_LONGER_BLOCKED, unblock_shards
from engine.jobs.maintenance.clock_steps import watch_clock
from engine.jobs.maintenance.crashes import CRASHING, crashing, is_crashing_input, of_running_job, requeue_crashed
from engine.jobs.maintenance.purge import DELETED, EXPIRED, EXPIRED_KEY, STALE_WORKER, purge
from engine.jobs.recording.completion import FINAL_STATUS, NO_OPEN_SHARD, end_columns, recount_open_shards
from engine.jobs.recording.orphaned_calls import record_orphaned_calls
from engine.jobs.recording.record import fail_remaining
from engine.jobs.recording.split_shard import split_shard
from engine.jobs.recording.spool_replay import replay
from engine.jobs.row_locks import lock_jobs, lock_shards
from engine.jobs.scheduling.dispatch import dispatch
from engine.queue import worker_heartbeats
from engine.runtime import Runtime
from models.base import db_now
from models.errors import EmbedmillError, StorageUnavailable
from models.job import (
    ACTIVE_STATUSES,
    FINISHED,
    OPEN_STATES,
    AmbiguousCall,
    IdempotencyKey,
    Job,
    JobStatus,
    Shard,
    ShardState,
)
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.sweep")

ROWS_PER_ROUND = 50


class WorkerCrashed(EmbedmillError):
    code = "worker_lost"
    retryable = True


async def sweep(runtime: Runtime) -> None:
    """One round of every duty that has something to do. Raises StorageUnavailable."""
    await watch_clock(runtime)
    # First: what was paid for must be in its place before anybody may claim the shard again.
    for duty in (replay, record_orphaned_calls, reclaim_dead_workers):
        await _run_duty(runtime, duty)
    due = await _due(runtime)
    due["split_crashing_shards"] |= due["requeue_expired"]  # which may bring the loss that is one too many
    for duty in (
        requeue_expired,
        requeue_unanswered,
        split_crashing_shards,
        unblock_shards,
        finish_jobs,
        end_abandoned_uploads,
        end_overdue_jobs,
        resume_recovered_jobs,
        purge,
    ):
        if due[duty.__name__]:
            await _run_duty(runtime, duty)
    await runtime.database.trim_log()
    await dispatch(runtime)


async def _run_duty(runtime: Runtime, duty: Callable[[Runtime], Awaitable[Any]]) -> None:
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
            Shard.state == ShardState.ANNOUNCED, Shard.announced_at < db_now() - settings.reannounce_after_s
        ),
        "split_crashing_shards": select(Shard.id).where(CRASHING, of_running_job()),
        "fail_exhausted": select(Shard.id).where(_has_no_attempts_left(runtime), of_running_job()),
        "unblock_shards": select(Shard.id).where(NO_LONGER_BLOCKED),
        "finish_jobs": select(Job.id).where(_UNFINISHED).order_by(Job.status, Job.open_shards),
        "end_cancelling": select(Job.id).where(Job.status == JobStatus.CANCELLING),
        "cancel_orphaned_shards": _ORPHANED_SHARDS.order_by(Job.status, Job.open_shards),
        "end_abandoned_uploads": select(Job.id).where(ABANDONED).order_by(Job.upload_lease_until),
        "end_overdue_jobs": select(Job.id).where(_OVERDUE).order_by(Job.expires_at),
        "resume_recovered_jobs": select(Job.id).where(WAITING_FOR_PROVIDER).order_by(Job.not_before),
        "purge": select(Job.id).where(DELETED).order_by(Job.deleted_at),
        "expire": select(Job.id).where(EXPIRED).order_by(Job.expires_at),
        "forget_keys": select(IdempotencyKey.key).where(EXPIRED_KEY).order_by(IdempotencyKey.expires_at),
        "forget_workers": select(WorkerProcess.id).where(STALE_WORKER),
        "forget_calls": select(AmbiguousCall.id)
        .where(AmbiguousCall.at < db_now() - settings.ambiguous_retention_days * 86400.0)
        .order_by(AmbiguousCall.at),
    }
    columns = [question.limit(1).scalar_subquery().is_not(None).label(name) for name, question in questions.items()]
    async with runtime.database.read() as connection:
        row = (await connection.execute(select(*columns))).one()
    due = dict(row._mapping)
    due["split_crashing_shards"] |= due.pop("fail_exhausted")
    due["finish_jobs"] |= due.pop("end_cancelling") | due.pop("cancel_orphaned_shards")
    for name in ("expire", "forget_keys", "forget_workers", "forget_calls"):
        due["purge"] |= due.pop(name)
    return due


_UNFINISHED = and_(Job.status.in_(ACTIVE_STATUSES), Job.open_shards < 1, Job.total.is_not(None))
# Where workers hold all that is left of a job, it waits so long for what they bring: they may be waiting themselves.
LATE_RESULTS_S = 600.0
_OVERDUE = and_(
    Job.expires_at < db_now(),
    Job.status.in_((JobStatus.VALIDATING, *ACTIVE_STATUSES)),
    Job.deleted_at.is_(None),
    or_(
        Job.expires_at < db_now() - LATE_RESULTS_S,
        Job.total.is_(None),
        select(Shard.id)
        .where(Shard.job_id == Job.id, Shard.state.in_(sorted(OPEN_STATES - {ShardState.RUNNING})))
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
        .is_not(None),
    ),
)
# A shard of a job that failed may have come back from a lost worker: nobody would claim it.
# Asked of the jobs, for few of those have ended with open shards, while there may be a million queued shards.
_ORPHANED_SHARDS = select(Job.id).where(
    Job.status.in_(FINISHED),
    Job.open_shards > 0,
    select(Shard.id)
    .where(Shard.job_id == Job.id, Shard.state.in_((ShardState.QUEUED, ShardState.ANNOUNCED)))
    .limit(1)
    .correlate(Job)
    .scalar_subquery()
    .is_not(None),
)


async def requeue_expired(runtime: Runtime) -> None:
    """Shards whose worker has stopped renewing its lease."""
    async with runtime.database.write() as connection:
        crashes = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.lease_until < db_now())
        rows = await requeue_crashed(connection, crashes, "the worker was lost")
    for row in rows:
        log.warning("a lease ran out", extra={"shard_id": row.id, "job_id": row.job_id})


async def reclaim_dead_workers(runtime: Runtime) -> None:
    """Shards and rows of worker processes of this machine that are no more: no need to wait for their leases."""
    async with runtime.database.read() as connection:
        rows = await connection.execute(
            select(Shard.worker)
            .where(Shard.state == ShardState.RUNNING, Shard.worker.is_not(None))
            .union(select(WorkerProcess.id))
        )
        dead_workers = [
            worker for worker in rows.scalars() if worker and worker_heartbeats.is_dead_local_process(worker)
        ]
    if not dead_workers:
        return
    async with runtime.database.write() as connection:
        await connection.execute(delete(WorkerProcess).where(WorkerProcess.id.in_(dead_workers)))
        shard = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.worker.in_(dead_workers))
        requeued = await requeue_crashed(connection, shard, "the worker died")
    log.warning("worker processes died", extra={"count": len(dead_workers), "freed": len(requeued)})


async def requeue_unanswered(runtime: Runtime) -> None:
    """Shards that were rung and never claimed: the message was lost, or every worker is busy."""
    async with runtime.database.write() as connection:
        unanswered = await lock_shards(
            connection,
            Shard.state == ShardState.ANNOUNCED,
            Shard.announced_at < db_now() - runtime.settings.reannounce_after_s,
        )
        await connection.execute(
            update(Shard).where(Shard.id.in_(unanswered)).values(state=ShardState.QUEUED, announced_at=None)
        )


async def split_crashing_shards(runtime: Runtime) -> None:
    """Shards that took worker after worker down with them are halved; a single input is tried, and fails if guilty."""
    is_crashing = crashing(runtime.settings.shard_attempts)
    found: list[Any] = []
    async with runtime.database.read() as connection:
        for which in (CRASHING, _has_no_attempts_left(runtime)):
            columns = select(Shard.id, Shard.worker_crashes, Shard.crash_limit)
            found += (await connection.execute(columns.where(which, of_running_job()).limit(ROWS_PER_ROUND))).all()
    for shard_id, crashes, limit in found:
        # Another sweep may have halved it since: then it is not deadly any more.
        halves = await split_shard(runtime, shard_id, is_crashing) if crashes >= limit else 1
        if halves == 2:
            log.warning("a shard that lost its workers was halved", extra={"shard_id": shard_id, "count": crashes})
        if halves != 1 or (crashes >= limit and not await is_crashing_input(runtime, shard_id)):
            continue
        shard = await claims.claim(runtime, shard_id, "sweep")
        if shard is not None:
            log.warning("a shard's attempts are spent", extra={"job_id": shard.job_id, "shard_id": shard_id})
            await fail_remaining(
                runtime, shard, WorkerCrashed("workers were lost again and again on this part of the job")
            )


def _has_no_attempts_left(runtime: Runtime) -> ColumnElement[bool]:
    return and_(Shard.state == ShardState.QUEUED, Shard.attempt >= runtime.settings.shard_attempts)


async def finish_jobs(runtime: Runtime) -> None:
    """Jobs that nothing is left to do for, yet are not finished."""
    async with runtime.database.write() as connection:
        unfinished = await lock_jobs(connection, _UNFINISHED)
        miscounted = (
            await connection.execute(select(Job.id).where(Job.id.in_(unfinished), ~NO_OPEN_SHARD).order_by(Job.id))
        ).scalars()
        for job_id in list(miscounted):
            await recount_open_shards(connection, job_id)
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
        await cancel_idle_shards(runtime, job_id)
    async with runtime.database.read() as connection:
        orphaned = list((await connection.execute(_ORPHANED_SHARDS.limit(ROWS_PER_ROUND))).scalars())
    for job_id in orphaned:
        await cancel_idle_shards(runtime, job_id)


async def end_overdue_jobs(runtime: Runtime) -> None:
    """Jobs that have not ended by their deadline: paused and forgotten, or waiting for what never comes."""
    async with runtime.database.read() as connection:
        ids = list((await connection.execute(select(Job.id).where(_OVERDUE).limit(ROWS_PER_ROUND))).scalars())
    days = runtime.settings.job_deadline_days
    for job_id in ids:
        log.warning("a job expired before it had ended", extra={"job_id": job_id})
        message = f"the job had not ended within {days:g} days: what is done of it can be read; submit the rest again"
        await terminate(runtime, job_id, JobStatus.EXPIRED, "job_expired", message)
