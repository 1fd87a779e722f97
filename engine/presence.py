"""Who is alive: worker processes write a heartbeat row, and everyone may count them."""

from __future__ import annotations

import asyncio
import contextlib

from sqlalchemy import delete, func, select

from engine.database import Database
from models.base import db_now
from models.errors import StorageUnavailable
from models.worker import WorkerProcess

BEAT_S = 10.0


async def beat(database: Database, worker: str, slots: int) -> None:
    """Say that this process lives. Raises StorageUnavailable."""
    async with database.write() as connection:
        await connection.execute(
            database.insert(WorkerProcess)
            .values(id=worker, slots=slots, started_at=db_now(), seen_at=db_now())
            .on_conflict_do_update(index_elements=["id"], set_={"seen_at": db_now(), "slots": slots})
        )


async def keep_beating(database: Database, worker: str, slots: int) -> None:
    """Beat until cancelled; a database that is away is asked again next time."""
    while True:
        with contextlib.suppress(StorageUnavailable):
            await beat(database, worker, slots)
        await asyncio.sleep(BEAT_S)


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
