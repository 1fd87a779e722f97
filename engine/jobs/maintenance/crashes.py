"""Crashes: which input takes workers down with it, and which one only happened to be there when a worker died.

A shard that loses workers is halved until one open input of it stands alone. That input then stands trial: it fails
only when workers die on it again and again, while other runs and other workers live. The rate at which others die in
the meantime says how likely so many deaths in a row are for an innocent input; it must be less than once in 10^6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sqlalchemy import and_, func, literal_column, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.config.settings import BEAT_S
from engine.jobs.row_locks import lock_jobs
from engine.runtime import Runtime
from models.base import db_now
from models.job import Job, JobStatus, Shard, ShardState
from models.worker import WorkerProcess

# The chance below which so many deaths in a row are no chance: inputs that stand trial are few, jobs are many.
P_INNOCENT = 1e-6
MIN_SOLO_DEATHS = 3
# Where nothing else ran and no other worker was there, nothing tells a deadly input from a deadly machine.
MAX_SOLO_DEATHS = 40
# Deaths in quick succession are likely to have one cause outside: a pause between them, the longer the more there were.
PAUSE_S = 0.1
MAX_PAUSE_S = 2.0
# Written out, not bound: the index on these shards serves only a statement that names its condition.
CRASHING = and_(Shard.state == literal_column("'queued'"), Shard.lost >= Shard.lost_limit)


def crashing(attempts: int) -> Any:
    """Shards that are the sweep's to halve, to try or to fail; those of a paused job wait until it is resumed."""
    spent = and_(Shard.state == ShardState.QUEUED, Shard.attempt >= attempts)
    return and_(or_(CRASHING, spent), of_running_job())


def of_running_job() -> Any:
    status = select(Job.status).where(Job.id == Shard.job_id).scalar_subquery()
    return status == JobStatus.IN_PROGRESS


async def requeue_lost(connection: AsyncConnection, shard_ids: list[str], reason: str) -> list[Any]:
    """Queue shards whose worker is gone, and count the loss: for each shard, and for its job.

    A death spends no attempt: those are for faults that a living worker reports.
    """
    rows = (
        await connection.execute(
            update(Shard)
            .where(Shard.id.in_(shard_ids))
            .values(
                state=ShardState.QUEUED,
                lease_until=None,
                allowance_usd=None,
                lost=Shard.lost + 1,
                attempt=Shard.attempt - 1,
                last_error=reason,
            )
            .returning(Shard.id, Shard.job_id)
        )
    ).all()
    await _count_losses(connection, (row.job_id for row in rows))
    return list(rows)


async def _count_losses(connection: AsyncConnection, job_ids: Iterable[str]) -> None:
    losses = Counter(job_ids)
    if not losses:
        return
    for job_id in await lock_jobs(connection, Job.id.in_(sorted(losses))):
        await connection.execute(
            update(Job).where(Job.id == job_id).values(worker_losses=Job.worker_losses + losses[job_id])
        )


async def is_guilty(runtime: Runtime, shard_id: str) -> bool:
    """Judge a queued shard of one open input that has lost another worker. False: it is tried again.

    Its trial begins with the first call. Deaths before it, when it was one of many or nobody counted, say nothing.
    """
    async with runtime.database.write() as connection:
        shard = (
            await connection.execute(
                select(Shard.lost, Shard.solo_trial).where(Shard.id == shard_id, CRASHING).with_for_update()
            )
        ).one_or_none()
        if shard is None:  # another sweep was here
            return False
        runs, losses, at = await _totals(connection)
        trial = shard.solo_trial or {"lost": shard.lost, "runs": runs, "losses": losses, "at": at}
        deaths = shard.lost - trial["lost"]
        if deaths >= MIN_SOLO_DEATHS:
            others_died = max(0, losses - trial["losses"] - deaths)
            running = (
                await connection.execute(select(func.count()).where(Shard.state == ShardState.RUNNING))
            ).scalar_one()
            others_lived = max(0, runs - trial["runs"] - deaths - others_died - running)
            # Each worker that was there all the time was spared as often as this input's was not.
            spared = deaths * await _lived_through(connection, trial["at"])
            if is_no_chance(deaths, others_died, others_lived + spared):
                return True
        pause_s = min(MAX_PAUSE_S, PAUSE_S * 2.0 ** min(deaths, 10))
        await connection.execute(
            update(Shard)
            .where(Shard.id == shard_id)
            .values(solo_trial=trial, lost_limit=Shard.lost + 1, next_run_at=db_now() + pause_s)
        )
    return False


def is_no_chance(deaths: int, others_died: int, others_lived: int) -> bool:
    """True when an innocent input meets so many deaths in a row less than once in 10^6 times.

    By the rule of succession a run ends in a death with the chance (died + 1) / (died + lived + 2).
    """
    if deaths >= MAX_SOLO_DEATHS:
        return True
    if deaths < MIN_SOLO_DEATHS or not others_lived:
        return False
    return ((others_died + 1.0) / (others_died + others_lived + 2.0)) ** deaths < P_INNOCENT


async def _totals(connection: AsyncConnection) -> tuple[int, int, float]:
    """Runs of shards, and those that ended with their worker, over all jobs there are; and the time."""
    row = (
        await connection.execute(
            select(
                func.coalesce(func.sum(Job.runs), 0).label("runs"),
                func.coalesce(func.sum(Job.worker_losses), 0).label("losses"),
                db_now().label("at"),
            )
        )
    ).one()
    return int(row.runs), int(row.losses), float(row.at)


async def _lived_through(connection: AsyncConnection, since: float) -> int:
    """How many worker processes were there before that moment, and are still."""
    found = await connection.execute(
        select(func.count()).where(WorkerProcess.started_at < since, WorkerProcess.seen_at > db_now() - 2 * BEAT_S)
    )
    return int(found.scalar_one())
