"""Who is alive: worker processes write a heartbeat row, and everyone may count them.

A process is named by its machine, its process namespace and its number, so that others of the same machine can tell
that it has died without waiting for a lease to run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from functools import cache
from pathlib import Path

from sqlalchemy import delete, func, select

from engine.database import Database
from engine.upstream import Upstream
from models.base import db_now
from models.errors import StorageUnavailable
from models.worker import WorkerProcess

BEAT_S = 10.0


def process_name() -> str:
    """This process's name as a worker."""
    return f"{_place()}:{os.getpid()}"


def surely_dead(worker: str) -> bool:
    """True when the worker ran on this machine, in this process namespace, and is no more.

    A number that was taken by another process since reads as alive: then its lease decides, as for any other machine.
    """
    place, _, number = worker.rpartition(":")
    if place != _place() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@cache
def _place() -> str:
    # Machines may share a name, and the first namespace has the same number on all of them: only a boot is unique.
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        namespace, boot = "pid", ""
    return f"{socket.gethostname()[:64]}/{boot}/{namespace}"


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


async def keep_sharing(database: Database, upstream: Upstream, seen_s: float) -> None:
    """Without Redis: divide each quota by the worker processes seen lately and one API, until cancelled."""
    while not upstream.quotas_are_shared:
        with contextlib.suppress(StorageUnavailable):
            upstream.share_quotas_among(await alive(database, seen_s) + 1)
        await asyncio.sleep(BEAT_S)
