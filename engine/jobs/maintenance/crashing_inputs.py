"""Crashes: tells an input that crashes its workers from one that was only present when a worker died.

A shard whose workers crash is split until one open input is left alone. That input is then tested: it fails only when
workers crash on it again and again while other runs and other workers survive. The rate at which other runs crash in
the meantime gives the probability of so many crashes in a row by chance, which must be below 10^-6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sqlalchemy import and_, func, literal_column, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.config.settings import BEAT_S
from engine.jobs.row_locks import lock_jobs
from engine.storage.database import Database
from models.base import db_now
from models.job import Job, JobStatus, Shard, ShardState
from models.worker import WorkerProcess

# Probability below which consecutive crashes are not taken for chance.
P_CHANCE = 1e-6
MIN_SOLO_CRASHES = 3
# Limit where nothing else ran and no other worker was alive: a crashing input looks like a crashing machine then.
MAX_SOLO_CRASHES = 40
# Crashes in quick succession are likely to have one external cause, so the pauses between tests grow.
PAUSE_S = 0.1
MAX_PAUSE_S = 2.0
# A literal, not a bound parameter: a partial index serves only a statement that contains its predicate.
CRASHING = and_(Shard.state == literal_column("'queued'"), Shard.worker_crashes >= Shard.crash_limit)


def crashing(attempts: int) -> Any:
    """Shards that the sweep must split, test or fail; those of a paused job wait until it is resumed."""
    exhausted = and_(Shard.state == ShardState.QUEUED, Shard.attempt >= attempts)
    return and_(or_(CRASHING, exhausted), of_running_job())


def of_running_job() -> Any:
    """Condition on a shard: its job is in progress."""
    status = select(Job.status).where(Job.id == Shard.job_id).scalar_subquery()
    return status == JobStatus.IN_PROGRESS


async def requeue_crashed(connection: AsyncConnection, shard_ids: list[str], reason: str) -> list[Any]:
    """Queue shards whose worker has crashed, and count the crash for each shard and its job. Returns id and job_id.

    A crash does not use up an attempt: attempts are for faults that a worker reports.
    """
    rows = (
        await connection.execute(
            update(Shard)
            .where(Shard.id.in_(shard_ids))
            .values(
                state=ShardState.QUEUED,
                lease_until=None,
                reserved_usd=None,
                worker_crashes=Shard.worker_crashes + 1,
                attempt=Shard.attempt - 1,
                last_error=reason,
            )
            .returning(Shard.id, Shard.job_id)
        )
    ).all()
    await _count_crashes(connection, (row.job_id for row in rows))
    return list(rows)


async def _count_crashes(connection: AsyncConnection, job_ids: Iterable[str]) -> None:
    crashes = Counter(job_ids)
    if not crashes:
        return
    for job_id in await lock_jobs(connection, Job.id.in_(sorted(crashes))):
        await connection.execute(
            update(Job).where(Job.id == job_id).values(worker_crashes=Job.worker_crashes + crashes[job_id])
        )


async def is_crashing_input(database: Database, shard_id: str) -> bool:
    """Decide on a queued shard of one open input that has crashed another worker. False: the input is tested again.

    Its test begins with the first call of this function. Crashes before that say nothing: the input was one of many.
    """
    async with database.write() as connection:
        shard = (
            await connection.execute(
                select(Shard.worker_crashes, Shard.solo_baseline)
                .where(Shard.id == shard_id, CRASHING)
                .with_for_update()
            )
        ).one_or_none()
        if shard is None:  # another sweep has decided meanwhile
            return False
        claims, crashes, now = await _totals(connection)
        start = {"shard_crashes": shard.worker_crashes, "claims": claims, "crashes": crashes, "at": now}
        baseline = shard.solo_baseline or start
        solo_crashes = shard.worker_crashes - baseline["shard_crashes"]
        if solo_crashes >= MIN_SOLO_CRASHES:
            other_crashes = max(0, crashes - baseline["crashes"] - solo_crashes)
            running = (
                await connection.execute(select(func.count()).where(Shard.state == ShardState.RUNNING))
            ).scalar_one()
            survived = max(0, claims - baseline["claims"] - solo_crashes - other_crashes - running)
            # A worker that ran all the time survived as many times as a worker on this input crashed.
            survived += solo_crashes * await _count_survivors(connection, baseline["at"])
            if is_beyond_chance(solo_crashes, other_crashes, survived):
                return True
        pause_s = min(MAX_PAUSE_S, PAUSE_S * 2.0 ** min(solo_crashes, 10))
        await connection.execute(
            update(Shard)
            .where(Shard.id == shard_id)
            .values(solo_baseline=baseline, crash_limit=Shard.worker_crashes + 1, next_run_at=db_now() + pause_s)
        )
    return False


def is_beyond_chance(solo_crashes: int, other_crashes: int, survived: int) -> bool:
    """True when a harmless input would meet so many crashes in a row less than once in 10^6 times.

    By the rule of succession a run crashes with the probability (crashed + 1) / (crashed + survived + 2).
    """
    if solo_crashes >= MAX_SOLO_CRASHES:
        return True
    if solo_crashes < MIN_SOLO_CRASHES or not survived:
        return False
    return ((other_crashes + 1.0) / (other_crashes + survived + 2.0)) ** solo_crashes < P_CHANCE


async def _totals(connection: AsyncConnection) -> tuple[int, int, float]:
    """Claims of shards of all jobs, how many of them ended with the crash of the worker, and the database's time."""
    row = (
        await connection.execute(
            select(
                func.coalesce(func.sum(Job.shard_claims), 0).label("claims"),
                func.coalesce(func.sum(Job.worker_crashes), 0).label("crashes"),
                db_now().label("now"),
            )
        )
    ).one()
    return int(row.claims), int(row.crashes), float(row.now)


async def _count_survivors(connection: AsyncConnection, since: float) -> int:
    """How many worker processes have run since before that instant."""
    found = await connection.execute(
        select(func.count()).where(WorkerProcess.started_at < since, WorkerProcess.seen_at > db_now() - 2 * BEAT_S)
    )
    return int(found.scalar_one())
