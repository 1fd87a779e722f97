"""Sweep: the periodic recovery. Any number of processes run it every few seconds.

With the sweep and a worker alone every job ends: it finds dead workers, interrupted uploads and unfinished jobs by
the rows and the clock of the database.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select, update

from engine.durability.call_journal import CallJournal
from engine.durability.spool import Spool
from engine.files import purge as file_purge
from engine.files.file_store import FileStore
from engine.job_store import JobStore
from engine.jobs.control.termination import cancel_idle_shards, terminate
from engine.jobs.execution.outage_waits import WAITING_FOR_PROVIDER, resume_recovered_jobs
from engine.jobs.ingest.broken_uploads import ABANDONED, end_abandoned_uploads
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.blocked import NO_LONGER_BLOCKED, unblock_shards
from engine.jobs.maintenance.clock_steps import watch_clock
from engine.jobs.maintenance.crashing_inputs import (
    CRASHING,
    crashing,
    is_crashing_input,
    of_running_job,
    requeue_crashed,
)
from engine.jobs.maintenance.purge import DELETED, EXPIRED, EXPIRED_KEY, STALE_OUTAGE, STALE_WORKER, purge
from engine.jobs.recording.completion import FINAL_STATUS, NO_OPEN_SHARD, end_columns, recount_open_shards
from engine.jobs.recording.orphaned_calls import record_orphaned_calls
from engine.jobs.recording.record_outcomes import fail_remaining
from engine.jobs.recording.split_shard import split_shard
from engine.jobs.recording.spool_replay import replay
from engine.jobs.row_locks import lock_jobs, lock_shards
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.process.background import logging_errors
from engine.process.clock import DatabaseClock
from engine.queue import worker_heartbeats
from engine.storage.database import Database
from engine.webhooks.job_events import record_job_events
from models.base import db_now
from models.batch import JobStep
from models.errors import EmbedmillError
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
from models.outage import RouteOutage
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.sweep")

ROWS_PER_ROUND = 50


class WorkerCrashed(EmbedmillError):
    """The error of inputs whose workers crashed again and again."""

    code = "worker_lost"
    retryable = True


@dataclass(frozen=True, slots=True)
class Sweep:
    """The recovery by one process. `clock`: compares the database's clock with this machine's from round to round."""

    store: JobStore
    clock: DatabaseClock
    spool: Spool
    journal: CallJournal
    dispatcher: Dispatcher
    files: FileStore

    async def run(self) -> None:
        """One round of all duties that have work. Raises StorageUnavailable."""
        store = self.store
        await watch_clock(store, self.clock)
        # First: paid results must be recorded before their shard can be claimed again.
        await _run_duty("replay", replay(store, self.spool))
        await _run_duty("record_orphaned_calls", record_orphaned_calls(store, self.journal))
        await _run_duty("reclaim_dead_workers", reclaim_dead_workers(store.database))
        due = await _due(store)
        due["split_crashing_shards"] |= due["requeue_expired"]  # which may count the crash that exceeds a limit
        for duty in (
            requeue_expired,
            split_crashing_shards,
            unblock_shards,
            finish_jobs,
            end_abandoned_uploads,
            end_overdue_jobs,
            resume_recovered_jobs,
            purge,
        ):
            if due[duty.__name__]:
                await _run_duty(duty.__name__, duty(store))
        if due["purge_files"]:
            await _run_duty("purge_files", file_purge.purge_files(self.files))
        await store.database.checkpoint_wal()
        await self.dispatcher.dispatch()


async def _run_duty(name: str, duty: Awaitable[Any]) -> None:
    """Run one duty; a failure is logged and does not prevent the others. Raises StorageUnavailable."""
    with logging_errors("a duty of the sweep failed", code=name):
        await duty


async def _due(store: JobStore) -> dict[str, bool]:
    """By duty: whether it has work. One statement without locks; nearly always no duty has.

    Each subquery uses an index that contains the rows to handle and few others.
    """
    settings = store.settings
    # ORDER BY with LIMIT 1: a planner that expects many matches would otherwise read the table from its beginning.
    questions = {
        "requeue_expired": select(Shard.id).where(Shard.state == ShardState.RUNNING, Shard.lease_until < db_now()),
        "split_crashing_shards": select(Shard.id).where(CRASHING, of_running_job()),
        "fail_exhausted": select(Shard.id).where(_has_no_attempts_left(store), of_running_job()),
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
        "forget_outages": select(RouteOutage.account).where(STALE_OUTAGE),
        "forget_calls": select(AmbiguousCall.id)
        .where(AmbiguousCall.at < db_now() - settings.ambiguous_retention_days * 86400.0)
        .order_by(AmbiguousCall.at),
        **file_purge.QUESTIONS,
    }
    columns = [question.limit(1).scalar_subquery().is_not(None).label(name) for name, question in questions.items()]
    async with store.database.read() as connection:
        row = (await connection.execute(select(*columns))).one()
    due = dict(row._mapping)
    due["split_crashing_shards"] |= due.pop("fail_exhausted")
    due["finish_jobs"] |= due.pop("end_cancelling") | due.pop("cancel_orphaned_shards")
    for name in ("expire", "forget_keys", "forget_workers", "forget_outages", "forget_calls"):
        due["purge"] |= due.pop(name)
    due["purge_files"] = any(due[name] for name in file_purge.QUESTIONS)
    return due


_UNFINISHED = and_(Job.status.in_(ACTIVE_STATUSES), Job.open_shards < 1, Job.total.is_not(None))
# An overdue job whose open shards are all running waits this long for their results.
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
# A shard of an ended job that was queued again after its worker was lost: nobody would claim it. The query starts from
# the jobs, because few of those ended with open shards, while there may be a million queued shards.
_ORPHANED_SHARDS = select(Job.id).where(
    Job.status.in_(FINISHED),
    Job.open_shards > 0,
    select(Shard.id)
    .where(Shard.job_id == Job.id, Shard.state == ShardState.QUEUED)
    .limit(1)
    .correlate(Job)
    .scalar_subquery()
    .is_not(None),
)


async def requeue_expired(store: JobStore) -> None:
    """Queue the shards whose lease has run out."""
    async with store.database.write() as connection:
        crashes = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.lease_until < db_now())
        rows = await requeue_crashed(connection, crashes, "the worker was lost")
    for row in rows:
        log.warning("a lease ran out", extra={"shard_id": row.id, "job_id": row.job_id})


async def reclaim_dead_workers(database: Database) -> None:
    """Free shards and steps of dead worker processes of this machine before their leases run out; delete their rows."""
    async with database.read() as connection:
        rows = await connection.execute(
            select(Shard.worker)
            .where(Shard.state == ShardState.RUNNING, Shard.worker.is_not(None))
            .union(
                select(WorkerProcess.id),
                select(JobStep.worker).where(JobStep.lease_until.is_not(None), JobStep.worker.is_not(None)),
            )
        )
        dead_workers = [
            worker for worker in rows.scalars() if worker and worker_heartbeats.is_dead_local_process(worker)
        ]
    if not dead_workers:
        return
    async with database.write() as connection:
        await connection.execute(delete(WorkerProcess).where(WorkerProcess.id.in_(dead_workers)))
        # The claim that was lost counts as an attempt: a file that kills its workers must not be read for ever.
        await connection.execute(
            update(JobStep).where(JobStep.worker.in_(dead_workers)).values(lease_until=None, worker=None)
        )
        shard = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.worker.in_(dead_workers))
        requeued = await requeue_crashed(connection, shard, "the worker died")
    log.warning("worker processes died", extra={"count": len(dead_workers), "freed": len(requeued)})


async def split_crashing_shards(store: JobStore) -> None:
    """Split shards that crash their workers; a single input is tested, and fails if it is what crashes them."""
    is_crashing = crashing(store.settings.shard_attempts)
    found: list[Any] = []
    async with store.database.read() as connection:
        for which in (CRASHING, _has_no_attempts_left(store)):
            columns = select(Shard.id, Shard.worker_crashes, Shard.crash_limit)
            found += (await connection.execute(columns.where(which, of_running_job()).limit(ROWS_PER_ROUND))).all()
    for shard_id, crashes, limit in found:
        # Another sweep may have split it meanwhile; the condition is false then.
        halves = await split_shard(store, shard_id, is_crashing) if crashes >= limit else 1
        if halves == 2:
            log.warning("a shard that crashed its workers was split", extra={"shard_id": shard_id, "count": crashes})
        if halves != 1 or (crashes >= limit and not await is_crashing_input(store.database, shard_id)):
            continue
        shard = await claims.claim(store, shard_id, "sweep")
        if shard is not None:
            log.warning("a shard's attempts are spent", extra={"job_id": shard.job_id, "shard_id": shard_id})
            await fail_remaining(
                store, shard, WorkerCrashed("workers were lost again and again on this part of the job")
            )


def _has_no_attempts_left(store: JobStore) -> ColumnElement[bool]:
    return and_(Shard.state == ShardState.QUEUED, Shard.attempt >= store.settings.shard_attempts)


async def finish_jobs(store: JobStore) -> None:
    """End the jobs that have no open shard, and cancel the open shards of ended jobs."""
    async with store.database.write() as connection:
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
            .values(status=FINAL_STATUS, version=Job.version + 1, **end_columns(store.settings))
        )
        await record_job_events(connection, unfinished)
        cancelling = list(
            (await connection.execute(select(Job.id).where(Job.status == JobStatus.CANCELLING))).scalars()
        )
    for job_id in cancelling:
        await cancel_idle_shards(store, job_id)
    async with store.database.read() as connection:
        orphaned = list((await connection.execute(_ORPHANED_SHARDS.limit(ROWS_PER_ROUND))).scalars())
    for job_id in orphaned:
        await cancel_idle_shards(store, job_id)


async def end_overdue_jobs(store: JobStore) -> None:
    """Expire the jobs that have not ended by their deadline."""
    async with store.database.read() as connection:
        overdue = (await connection.execute(select(Job.id, Job.batch_id).where(_OVERDUE).limit(ROWS_PER_ROUND))).all()
    days = f"{store.settings.job_deadline_days:g} days"
    for job_id, batch_id in overdue:
        log.warning("a job expired before it had ended", extra={"job_id": job_id})
        time = days if batch_id is None else "the completion window of its batch"
        message = f"the job had not ended within {time}: what is done of it can be read; submit the rest again"
        await terminate(store, job_id, JobStatus.EXPIRED, "job_expired", message)
