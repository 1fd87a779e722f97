"""Heartbeats of worker processes: each writes a row, by which any process can count the live workers.

A process is named by its machine, its process namespace and its number, so that other processes of the machine notice
its death before a lease expires.
"""

from __future__ import annotations

from sqlalchemy import delete, func, select

from engine.config.settings import BEAT_S
from engine.limiter.registry import LimiterRegistry
from engine.process.background import ErrorLog, repeat
from engine.process.process_names import is_alive_here, is_dead_local_process, process_name
from engine.storage.database import Database
from models.base import db_now
from models.worker import WorkerProcess

__all__ = [
    "count_alive",
    "deregister",
    "heartbeat",
    "heartbeat_loop",
    "is_alive_here",
    "is_dead_local_process",
    "process_name",
    "quota_share_loop",
]

# After an outage of the database, every process has written a heartbeat again within this time.
SETTLE_S = 2 * BEAT_S


async def heartbeat(database: Database, worker: str, slots: int) -> None:
    """Write the heartbeat of this process. Raises StorageUnavailable."""
    async with database.write() as connection:
        await connection.execute(
            database.insert(WorkerProcess)
            .values(id=worker, slots=slots, started_at=db_now(), seen_at=db_now())
            .on_conflict_do_update(index_elements=["id"], set_={"seen_at": db_now(), "slots": slots})
        )


async def heartbeat_loop(database: Database, worker: str, slots: int, *, every_s: float = BEAT_S) -> None:
    """Write heartbeats until cancelled, also after database errors."""
    await repeat(lambda: heartbeat(database, worker, slots), ErrorLog("the heartbeat of this worker"), every_s=every_s)


async def deregister(database: Database, worker: str) -> None:
    """Delete the row of this process, which ends. Raises StorageUnavailable."""
    async with database.write() as connection:
        await connection.execute(delete(WorkerProcess).where(WorkerProcess.id == worker))


async def count_alive(database: Database, alive_within_s: float) -> int:
    """Worker processes with a heartbeat in the last `alive_within_s` seconds. Raises StorageUnavailable."""
    async with database.read() as connection:
        counted = await connection.execute(
            select(func.count()).select_from(WorkerProcess).where(WorkerProcess.seen_at > db_now() - alive_within_s)
        )
        return int(counted.scalar_one())


async def quota_share_loop(database: Database, limiters: LimiterRegistry, alive_within_s: float) -> None:
    """Without Redis: split the quotas among the live worker processes and one API, until cancelled."""
    processes = 1

    async def share() -> None:
        nonlocal processes
        counted = await count_alive(database, alive_within_s) + 1
        if counted < processes and errors.failing_within_s(SETTLE_S):
            return  # heartbeats could not be written either: missing processes may be alive
        processes = counted
        limiters.split_among(processes)

    errors = ErrorLog("counting the processes that share the quotas")

    if not limiters.uses_redis:
        await repeat(share, errors, every_s=BEAT_S)
