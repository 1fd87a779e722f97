"""Dispatch: which shards go into the broker next. Fair over projects, then over their jobs, and never many at once.

Only a small window of shards is rung at any time, so that a job of ten inputs does not queue behind a job of a million.
Any process may dispatch; on PostgreSQL an advisory lock lets one do it at a time, on SQLite the write lock does.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.locks import lock_jobs, lock_shards
from engine.runtime import Runtime
from models.base import db_now
from models.job import Job, JobStatus, Shard, ShardState
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.jobs")

DUTY = 0x656D_0001  # the advisory lock's number
RINGS_PER_SLOT = 2
LEAST_WINDOW = 4


async def dispatch(runtime: Runtime) -> int:
    """Ring the shards whose turn it is; how many were rung. Raises StorageUnavailable."""
    async with runtime.database.read() as connection:
        # Most rounds find nothing to do: they must not take the write lock to learn it.
        due = _due(runtime.settings.shard_attempts)
        if not await _any(connection, due) or not await _room(connection, runtime.settings.worker_seen_s):
            return 0
    async with runtime.database.write() as connection:
        if not await runtime.database.alone(connection, DUTY):
            return 0
        room = await _room(connection, runtime.settings.worker_seen_s)
        chosen = await _choose(connection, room, due) if room else []
        rung = await _mark_rung(connection, chosen) if chosen else []
    # After the commit: a message must never speak of what is not there yet.
    if rung and not await runtime.doorbell.ring(rung):
        async with runtime.database.write() as connection:
            still = await lock_shards(connection, Shard.id.in_(rung), Shard.state == ShardState.RUNG)
            await connection.execute(
                update(Shard).where(Shard.id.in_(still)).values(state=ShardState.QUEUED, rung_at=None)
            )
        return 0
    return len(rung)


async def take_turn(runtime: Runtime) -> str | None:
    """The shard whose turn it is, marked as rung though nothing was sent: the caller claims it now."""
    async with runtime.database.write() as connection:
        if not await runtime.database.alone(connection, DUTY):
            return None
        chosen = await _choose(connection, 1, _due(runtime.settings.shard_attempts))
        rung = await _mark_rung(connection, chosen) if chosen else []
    return rung[0] if rung else None


def _due(attempts: int) -> ColumnElement[bool]:
    # A shard whose attempts are spent is the sweep's to fail: ringing it would take one more worker down with it.
    return and_(Shard.state == ShardState.QUEUED, Shard.next_run_at <= db_now(), Shard.attempt < attempts)


async def _any(connection: AsyncConnection, due: ColumnElement[bool]) -> bool:
    return (await connection.execute(select(Shard.id).where(due).limit(1))).first() is not None


async def _room(connection: AsyncConnection, seen_s: float) -> int:
    """How many more shards may be rung: twice the slots of the workers alive, less those that wait there already."""
    slots = (
        await connection.execute(
            select(func.coalesce(func.sum(WorkerProcess.slots), 0)).where(WorkerProcess.seen_at > db_now() - seen_s)
        )
    ).scalar_one()
    rung = (
        await connection.execute(select(func.count()).select_from(Shard).where(Shard.state == ShardState.RUNG))
    ).scalar_one()
    return max(0, max(LEAST_WINDOW, RINGS_PER_SLOT * int(slots)) - int(rung))


async def _choose(connection: AsyncConnection, room: int, due: ColumnElement[bool]) -> list[Any]:
    """Shards in turn: each project's longest-waiting job first, one shard each, then the next round."""
    waiting = select(Shard.id).where(Shard.job_id == Job.id, due).exists()
    turn = func.row_number().over(partition_by=Job.project, order_by=(func.coalesce(Job.rung_at, 0.0), Job.id))
    jobs = (
        await connection.execute(
            select(Job.id)
            .where(Job.status == JobStatus.IN_PROGRESS, Job.deleted_at.is_(None), waiting)
            .order_by(turn, func.coalesce(Job.rung_at, 0.0), Job.id)
            .limit(room)
        )
    ).scalars()
    rounds: list[list[str]] = []
    for job_id in jobs:
        shards = await connection.execute(
            select(Shard.id).where(Shard.job_id == job_id, due).order_by(Shard.seq).limit(room)
        )
        rounds.append(list(shards.scalars()))
    in_turn = (shard for each in itertools.zip_longest(*rounds) for shard in each if shard is not None)
    return list(itertools.islice(in_turn, room))


async def _mark_rung(connection: AsyncConnection, shard_ids: list[str]) -> list[str]:
    queued = await lock_shards(connection, Shard.id.in_(shard_ids), Shard.state == ShardState.QUEUED)
    rows = (
        await connection.execute(
            update(Shard)
            .where(Shard.id.in_(queued))
            .values(state=ShardState.RUNG, rung_at=db_now())
            .returning(Shard.id, Shard.job_id)
        )
    ).all()
    jobs = await lock_jobs(connection, Job.id.in_({row.job_id for row in rows}))
    if jobs:
        await connection.execute(
            update(Job)
            .where(Job.id.in_(jobs))
            .values(rung_at=db_now(), started_at=func.coalesce(Job.started_at, db_now()))
        )
    rung = {row.id for row in rows}
    return [shard_id for shard_id in shard_ids if shard_id in rung]
