"""Sweep: the final authority. Every few seconds, from any process, in any number, it mends what crashes left behind.

Nothing else need succeed for a job to end: lost messages, dead workers, half-read corpora and unfinished finishes are
all found here, by what the database says and by its clock.
"""

from __future__ import annotations

import logging

from sqlalchemy import ColumnElement, and_, delete, or_, select, update

from engine import presence
from engine.jobs import claim as claims
from engine.jobs.dispatch import dispatch
from engine.jobs.ending import close_shards, end_early
from engine.jobs.finish import FINAL_STATUS
from engine.jobs.halve import halve
from engine.jobs.locks import lock_jobs, lock_shards
from engine.jobs.lost_calls import note_lost_calls
from engine.jobs.purge import DOOMED, EXPIRED, OLD_KEY, OLD_WORKER, purge
from engine.jobs.record import fail_rest
from engine.jobs.replay import replay
from engine.jobs.turns import WORKERS_LOST
from engine.runtime import Runtime
from models.base import db_now
from models.errors import EmbedmillError
from models.job import (
    FINISHED,
    UNDER_WAY,
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
    # First: what was paid for must be in its place before anybody may claim the shard again.
    await replay(runtime)
    await note_lost_calls(runtime)
    await free_the_dead(runtime)
    due = await _due(runtime)
    due["halve_the_deadly"] |= due["requeue_expired"]  # which may bring the loss that is one too many
    duties = (
        requeue_expired,
        ring_again,
        halve_the_deadly,
        finish_jobs,
        end_abandoned_intakes,
        end_forgotten_pauses,
        purge,
    )
    for duty in duties:
        if due[duty.__name__]:
            await duty(runtime)
    await runtime.database.trim_log()
    await dispatch(runtime)


async def spare_leases(runtime: Runtime) -> None:
    """After a time without the database: whoever holds a shard gets one heartbeat's time to come back to it.

    Nobody could renew a lease meanwhile, and the results of its calls wait beside its worker, paid for.
    """
    grace_s = runtime.settings.heartbeat_s
    async with runtime.database.write() as connection:
        spared = await lock_shards(
            connection, Shard.state == ShardState.RUNNING, Shard.lease_until < db_now() + grace_s
        )
        await connection.execute(update(Shard).where(Shard.id.in_(spared)).values(lease_until=db_now() + grace_s))
    if spared:
        log.info("leases were spared after a time without the database", extra={"count": len(spared)})


async def _due(runtime: Runtime) -> dict[str, bool]:
    """Which duties have something to do, in one statement that locks nothing: nearly always none has.

    Each question is answered from an index that leads to what is out of order, past all that is in order.
    """
    settings = runtime.settings
    # Ordered, and the first only: a planner that expects many matches would else read the table from its beginning.
    questions = {
        "requeue_expired": select(Shard.id).where(Shard.state == ShardState.RUNNING, Shard.lease_until < db_now()),
        "ring_again": select(Shard.id).where(
            Shard.state == ShardState.RUNG, Shard.rung_at < db_now() - settings.ring_again_s
        ),
        "halve_the_deadly": select(Shard.id).where(_deadly(runtime)),
        "finish_jobs": select(Job.id).where(_UNFINISHED).order_by(Job.status, Job.open_shards),
        "end_cancelling": select(Job.id).where(Job.status == JobStatus.CANCELLING),
        "close_stray_shards": _STRAY.order_by(Job.status, Job.open_shards),
        "end_abandoned_intakes": select(Job.id).where(_ABANDONED).order_by(Job.intake_until),
        "end_forgotten_pauses": select(Job.id).where(_FORGOTTEN).order_by(Job.expires_at),
        "purge": select(Job.id).where(DOOMED).order_by(Job.deleted_at),
        "expire": select(Job.id).where(EXPIRED).order_by(Job.expires_at),
        "forget_keys": select(IdempotencyKey.key).where(OLD_KEY).order_by(IdempotencyKey.expires_at),
        "forget_workers": select(WorkerProcess.id).where(OLD_WORKER),
    }
    columns = [question.limit(1).scalar_subquery().is_not(None).label(name) for name, question in questions.items()]
    async with runtime.database.read() as connection:
        row = (await connection.execute(select(*columns))).one()
    due = dict(row._mapping)
    due["finish_jobs"] |= due.pop("end_cancelling") | due.pop("close_stray_shards")
    due["purge"] |= due.pop("expire") | due.pop("forget_keys") | due.pop("forget_workers")
    return due


_UNFINISHED = and_(Job.status.in_(UNDER_WAY), Job.open_shards < 1, Job.total.is_not(None))
_ABANDONED = and_(Job.status.in_((JobStatus.VALIDATING, *UNDER_WAY)), Job.intake_until < db_now())
_FORGOTTEN = and_(Job.expires_at < db_now(), Job.status == JobStatus.PAUSED, Job.deleted_at.is_(None))
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
        rows = (
            await connection.execute(
                update(Shard)
                .where(Shard.id.in_(lost))
                .values(
                    state=ShardState.QUEUED, lease_until=None, lost=Shard.lost + 1, last_error="the worker was lost"
                )
                .returning(Shard.id, Shard.job_id)
            )
        ).all()
    for row in rows:
        log.warning("a lease ran out", extra={"shard_id": row.id, "job_id": row.job_id})


async def free_the_dead(runtime: Runtime) -> None:
    """Shards and rows of worker processes of this machine that are no more: no need to wait for their leases."""
    async with runtime.database.read() as connection:
        seen = await connection.execute(
            select(Shard.worker)
            .where(Shard.state == ShardState.RUNNING, Shard.worker.is_not(None))
            .union(select(WorkerProcess.id))
        )
        dead = [worker for worker in seen.scalars() if worker and presence.surely_dead(worker)]
    if not dead:
        return
    async with runtime.database.write() as connection:
        await connection.execute(delete(WorkerProcess).where(WorkerProcess.id.in_(dead)))
        held = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.worker.in_(dead))
        freed = await connection.execute(
            update(Shard)
            .where(Shard.id.in_(held))
            .values(state=ShardState.QUEUED, lease_until=None, lost=Shard.lost + 1, last_error="the worker died")
        )
    log.warning("worker processes died", extra={"count": len(dead), "freed": freed.rowcount})


async def ring_again(runtime: Runtime) -> None:
    """Shards that were rung and never claimed: the message was lost, or every worker is busy."""
    async with runtime.database.write() as connection:
        unheard = await lock_shards(
            connection, Shard.state == ShardState.RUNG, Shard.rung_at < db_now() - runtime.settings.ring_again_s
        )
        await connection.execute(
            update(Shard).where(Shard.id.in_(unheard)).values(state=ShardState.QUEUED, rung_at=None)
        )


async def halve_the_deadly(runtime: Runtime) -> None:
    """Shards that took worker after worker down with them are halved; a single input that does so fails."""
    async with runtime.database.read() as connection:
        ids = (await connection.execute(select(Shard.id, Shard.lost).where(_deadly(runtime)).limit(AT_ONCE))).all()
    for shard_id, lost in ids:
        # Another sweep may have halved it since: then it is not deadly any more.
        halves = await halve(runtime, shard_id, _deadly(runtime)) if lost else 1
        if halves == 2:
            log.warning("a shard that lost its workers was halved", extra={"shard_id": shard_id, "count": lost})
        if halves != 1:
            continue
        held = await claims.claim(runtime, shard_id, "sweep")
        if held is not None:
            log.warning("a shard's attempts are spent", extra={"job_id": held.job_id, "shard_id": shard_id})
            await fail_rest(runtime, held, WorkerLost("workers were lost again and again on this part of the job"))


def _deadly(runtime: Runtime) -> ColumnElement[bool]:
    """Shards that have had their chances; those of a paused job wait until it is resumed."""
    attempts = runtime.settings.shard_attempts
    status = select(Job.status).where(Job.id == Shard.job_id).scalar_subquery()
    return and_(
        Shard.state == ShardState.QUEUED,
        # Whoever lost its worker so often was claimed as often: the index knows attempts.
        Shard.attempt >= min(WORKERS_LOST, attempts),
        or_(Shard.lost >= WORKERS_LOST, Shard.attempt >= attempts),
        status == JobStatus.IN_PROGRESS,
    )


async def finish_jobs(runtime: Runtime) -> None:
    """Jobs that nothing is left to do for, yet are not finished."""
    async with runtime.database.write() as connection:
        unfinished = await lock_jobs(connection, _UNFINISHED)
        await connection.execute(
            update(Job)
            .where(Job.id.in_(unfinished))
            .values(status=FINAL_STATUS, finished_at=db_now(), version=Job.version + 1, waiting_on=None)
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


async def end_abandoned_intakes(runtime: Runtime) -> None:
    """Jobs whose receiving process has died in the middle of the corpus."""
    async with runtime.database.read() as connection:
        ids = list((await connection.execute(select(Job.id).where(_ABANDONED))).scalars())
    for job_id in ids:
        log.warning("an intake was abandoned", extra={"job_id": job_id})
        await end_early(
            runtime,
            job_id,
            JobStatus.FAILED,
            "upload_interrupted",
            "the server stopped while the corpus arrived: send it again",
        )


async def end_forgotten_pauses(runtime: Runtime) -> None:
    """Jobs that were paused for so long that they expire: cancelled, they go as every other."""
    async with runtime.database.read() as connection:
        ids = list((await connection.execute(select(Job.id).where(_FORGOTTEN).limit(AT_ONCE))).scalars())
    for job_id in ids:
        await end_early(runtime, job_id, JobStatus.CANCELLED)
