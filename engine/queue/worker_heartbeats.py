"""Who is alive: worker processes write a heartbeat row, and everyone may count them.

A process is named by its machine, its process namespace and its number, so that others of the same machine can tell
that it has died without waiting for a lease to run out.
"""

from __future__ import annotations

from sqlalchemy import delete, func, select

from engine.config.settings import BEAT_S
from engine.process.background import ErrorLog, repeat
from engine.process.process_names import is_alive_here, is_dead_local_process, process_name
from engine.storage.database import Database
from engine.upstream.call import Upstream
from models.base import db_now
from models.worker import WorkerProcess

__all__ = [
    "alive",
    "beat",
    "is_alive_here",
    "is_dead_local_process",
    "keep_beating",
    "keep_sharing",
    "leave",
    "process_name",
]

# After a time without the database every process has beaten again by then.
SETTLE_S = 2 * BEAT_S


async def beat(database: Database, worker: str, slots: int) -> None:
    """Say that this process lives. Raises StorageUnavailable."""
    async with database.write() as connection:
        await connection.execute(
            database.insert(WorkerProcess)
            .values(id=worker, slots=slots, started_at=db_now(), seen_at=db_now())
            .on_conflict_do_update(index_elements=["id"], set_={"seen_at": db_now(), "slots": slots})
        )


async def keep_beating(database: Database, worker: str, slots: int, *, every_s: float = BEAT_S) -> None:
    """Beat until cancelled, whatever the database says meanwhile."""
    await repeat(lambda: beat(database, worker, slots), ErrorLog("the heartbeat of this worker"), every_s=every_s)


async def leave(database: Database, worker: str) -> None:
    """Say goodbye, so that nobody counts on this process."""
    async with database.write() as connection:
        await connection.execute(delete(WorkerProcess).where(WorkerProcess.id == worker))


async def alive(database: Database, seen_s: float) -> int:
    """How many worker processes were seen within the last `seen_s` seconds."""
    async with database.read() as connection:
        counted = await connection.execute(
            select(func.count()).select_from(WorkerProcess).where(WorkerProcess.seen_at > db_now() - seen_s)
        )
        return int(counted.scalar_one())


async def keep_sharing(database: Database, upstream: Upstream, seen_s: float) -> None:
    """Without Redis: divide each quota by the worker processes seen lately and one API, until cancelled."""

    processes = 1

    async def share() -> None:
        nonlocal processes
        counted = await alive(database, seen_s) + 1
        if counted < processes and errors.failing_within_s(SETTLE_S):
            return  # heartbeats could not be written either: who is missing may only not have come back yet
        processes = counted
        upstream.split_quotas_among(processes)

    errors = ErrorLog("counting the processes that share the quotas")

    if not upstream.shares_quotas:
        await repeat(share, errors, every_s=BEAT_S)
