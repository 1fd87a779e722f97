"""Sweep: the final authority. Every few seconds, from any process, in any number, it mends what crashes left behind.

Nothing else need succeed for a job to end: lost messages, dead workers, half-read corpora and unfinished finishes are
all found here, by what the database says and by its clock.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine import presence
from engine.jobs import claim as claims
from engine.jobs.dispatch import dispatch
from engine.jobs.ending import close_shards, end_early
from engine.jobs.finish import FINAL_STATUS
from engine.jobs.locks import lock_jobs, lock_shards
from engine.jobs.record import fail_rest
from engine.jobs.replay import replay
from engine.runtime import Runtime
from models.base import db_now
from models.errors import EmbedmillError
from models.job import (
    FINISHED,
    UNDER_WAY,
    IdempotencyKey,
    InputFailure,
    Job,
    JobStatus,
    Shard,
    ShardInputs,
    ShardState,
    VectorRun,
)
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.sweep")

PURGE_RUNS = 50
PURGE_ROWS = 5000
FORGET_WORKER_S = 3600.0


class WorkerLost(EmbedmillError):
    code = "worker_lost"
    retryable = True


async def sweep(runtime: Runtime) -> None:
    """One round of every duty that has something to do. Raises StorageUnavailable."""
    # First: what was paid for must be in its place before anybody may claim the shard again.
    await replay(runtime)
    await free_the_dead(runtime)
    due = await _due(runtime)
    for duty in (requeue_expired, ring_again, fail_exhausted, finish_jobs, end_abandoned_intakes, purge):
        if due[duty.__name__]:
            await duty(runtime)
    await dispatch(runtime)


async def spare_leases(runtime: Runtime) -> None:
    """After a time without the database: whoever holds a shard gets one heartbeat's time to come back to it.

    Nobody could renew a lease meanwhile, and the results of its calls wait beside its worker, paid for.
    """
    grace_s = runtime.settings.heartbeat_s
    async with runtime.database.write() as connection:
        spared = await connection.execute(
            update(Shard)
            .where(Shard.state == ShardState.RUNNING, Shard.lease_until < db_now() + grace_s)
            .values(lease_until=db_now() + grace_s)
        )
    if spared.rowcount:
        log.info("leases were spared after a time without the database", extra={"count": spared.rowcount})


async def _due(runtime: Runtime) -> dict[str, bool]:
    """Which duties have something to do, in one statement that locks nothing: nearly always none has."""
    settings = runtime.settings
    questions = {
        "requeue_expired": select(Shard.id).where(Shard.state == ShardState.RUNNING, Shard.lease_until < db_now()),
        "ring_again": select(Shard.id).where(
            Shard.state == ShardState.RUNG, Shard.rung_at < db_now() - settings.ring_again_s
        ),
        "fail_exhausted": select(Shard.id).where(
            Shard.state == ShardState.QUEUED, Shard.attempt >= settings.shard_attempts
        ),
        "finish_jobs": select(Job.id).where(or_(_UNFINISHED, Job.status == JobStatus.CANCELLING)),
        "close_stray_shards": _STRAY,
        "end_abandoned_intakes": select(Job.id).where(_ABANDONED),
        "purge": select(Job.id).where(or_(_DOOMED, _EXPIRED)),
        "forget_keys": select(IdempotencyKey.key).where(IdempotencyKey.expires_at < db_now()),
        "forget_workers": select(WorkerProcess.id).where(WorkerProcess.seen_at < db_now() - FORGET_WORKER_S),
    }
    columns = [question.exists().label(name) for name, question in questions.items()]
    async with runtime.database.read() as connection:
        row = (await connection.execute(select(*columns))).one()
    due = dict(row._mapping)
    due["finish_jobs"] |= due.pop("close_stray_shards")
    due["purge"] |= due.pop("forget_keys") | due.pop("forget_workers")
    return due


_UNFINISHED = and_(Job.status.in_(UNDER_WAY), Job.open_shards == 0, Job.total.is_not(None))
_ABANDONED = and_(Job.status.in_((JobStatus.VALIDATING, *UNDER_WAY)), Job.intake_until < db_now())
_DOOMED = and_(Job.deleted_at.is_not(None), Job.status.in_(FINISHED))
_EXPIRED = and_(Job.expires_at < db_now(), Job.status.in_(FINISHED), Job.deleted_at.is_(None))
# A shard of a job that failed may have come back from a lost worker: nobody would claim it.
_STRAY = (
    select(Shard.job_id)
    .join(Job, Job.id == Shard.job_id)
    .where(Shard.state.in_((ShardState.QUEUED, ShardState.RUNG)), Job.status.in_(FINISHED))
)


async def requeue_expired(runtime: Runtime) -> None:
    """Shards whose worker has stopped renewing its lease."""
    async with runtime.database.write() as connection:
        lost = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.lease_until < db_now())
        rows = (
            await connection.execute(
                update(Shard)
                .where(Shard.id.in_(lost))
                .values(state=ShardState.QUEUED, lease_until=None, last_error="the worker was lost")
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
            .values(state=ShardState.QUEUED, lease_until=None, last_error="the worker died")
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


async def fail_exhausted(runtime: Runtime) -> None:
    """Shards that took worker after worker down with them: what is left of them fails, input by input."""
    cap = runtime.settings.shard_attempts
    async with runtime.database.read() as connection:
        ids = (
            await connection.execute(
                select(Shard.id).where(Shard.state == ShardState.QUEUED, Shard.attempt >= cap).limit(PURGE_RUNS)
            )
        ).scalars()
        spent = list(ids)
    for shard_id in spent:
        held = await claims.claim(runtime, shard_id, "sweep")
        if held is not None:
            log.warning("a shard's attempts are spent", extra={"job_id": held.job_id, "shard_id": shard_id})
            await fail_rest(runtime, held, WorkerLost("workers were lost again and again on this part of the job"))


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
        stray = list((await connection.execute(_STRAY.distinct().limit(PURGE_RUNS))).scalars())
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


async def purge(runtime: Runtime) -> None:
    """Deleted and expired jobs, a bounded number of rows a round; old idempotency keys; workers long gone."""
    async with runtime.database.write() as connection:
        expired = await lock_jobs(connection, _EXPIRED)
        await connection.execute(update(Job).where(Job.id.in_(expired)).values(deleted_at=db_now()))
        await connection.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at < db_now()))
        await connection.execute(delete(WorkerProcess).where(WorkerProcess.seen_at < db_now() - FORGET_WORKER_S))
    async with runtime.database.write() as connection:  # of its own, for it locks shards before the job
        doomed = (await connection.execute(select(Job.id).where(_DOOMED).limit(1))).scalar_one_or_none()
        if doomed is not None:
            await _purge_some(connection, doomed)


async def _purge_some(connection: AsyncConnection, job_id: str) -> None:
    """Remove one step's worth of a deleted job: its vectors first, for they weigh the most, itself last."""
    steps: tuple[tuple[Any, Any, Any, int], ...] = (
        (VectorRun, VectorRun.first_index, VectorRun.job_id == job_id, PURGE_RUNS),
        (InputFailure, InputFailure.index, InputFailure.job_id == job_id, PURGE_ROWS),
    )
    for table, column, mine, some in steps:
        chosen = select(column).where(mine).limit(some).scalar_subquery()
        gone = await connection.execute(delete(table).where(mine, column.in_(chosen)))
        if gone.rowcount:
            return
    shards = await lock_shards(connection, Shard.job_id == job_id, at_once=PURGE_RUNS)
    await connection.execute(delete(ShardInputs).where(ShardInputs.shard_id.in_(shards)))
    await connection.execute(delete(Shard).where(Shard.id.in_(shards)))
    if len(shards) < PURGE_RUNS:
        await connection.execute(delete(Job).where(Job.id == job_id))
        log.info("a deleted job was removed", extra={"job_id": job_id})
