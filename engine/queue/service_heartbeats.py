"""Which processes of the installation run, in which version: each writes a heartbeat row, for `embedmill doctor`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version

from sqlalchemy import delete, select

from engine.config.settings import BEAT_S
from engine.process.background import ErrorLog, repeat
from engine.process.process_names import is_dead_local_process, process_name
from engine.storage.database import Database
from models.base import db_now
from models.errors import StorageUnavailable
from models.process import ServiceProcess

FORGET_S = 86_400.0
OUR_VERSION = version("embedmill")


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """A process that has beaten lately. `seen_s`: seconds since its last heartbeat, by the database's clock."""

    id: str
    service: str
    version: str
    seen_s: float


async def beat(database: Database, service: str) -> None:
    """Say that this process lives, and forget those of yesterday. Raises StorageUnavailable."""
    now = {"service": service, "version": OUR_VERSION, "seen_at": db_now()}
    async with database.write() as connection:
        await connection.execute(
            database.insert(ServiceProcess)
            .values(id=f"{service}/{process_name()}", started_at=db_now(), **now)
            .on_conflict_do_update(index_elements=["id"], set_=now)
        )
        await connection.execute(delete(ServiceProcess).where(ServiceProcess.seen_at < db_now() - FORGET_S))


async def keep_beating(database: Database, service: str) -> None:
    """Beat until cancelled, then sign off."""
    try:
        await repeat(lambda: beat(database, service), ErrorLog(f"the heartbeat of this {service}"), every_s=BEAT_S)
    finally:
        await leave(database, service)


async def leave(database: Database, service: str) -> None:
    try:
        async with database.write() as connection:
            await connection.execute(delete(ServiceProcess).where(ServiceProcess.id == f"{service}/{process_name()}"))
    except StorageUnavailable:
        pass  # the row grows old instead


async def seen(database: Database) -> tuple[list[SeenProcess], float]:
    """The processes that have not signed off, and how far this machine's clock is ahead of the database's, in seconds.

    Raises StorageUnavailable.
    """
    columns = (ServiceProcess.id, ServiceProcess.service, ServiceProcess.version)
    async with database.read() as connection:
        now = float((await connection.execute(select(db_now()))).scalar_one())
        ahead_s = time.time() - now
        rows = (await connection.execute(select(*columns, (db_now() - ServiceProcess.seen_at).label("seen_s")))).all()
    found = [SeenProcess(row.id, row.service, row.version, float(row.seen_s)) for row in rows]
    return [each for each in found if not is_dead_local_process(each.id.partition("/")[2])], ahead_s
