"""Heartbeats of all processes of a deployment, with their version, for `embedmill doctor`."""

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

DELETE_AFTER_S = 86_400.0
OUR_VERSION = version("embedmill")


@dataclass(frozen=True, slots=True)
class ProcessHeartbeat:
    """A process with a recent heartbeat. `seen_s`: seconds since its last heartbeat, by the database's clock."""

    id: str
    service: str
    version: str
    seen_s: float


async def heartbeat(database: Database, service: str) -> None:
    """Write the heartbeat of this process, and delete rows older than a day. Raises StorageUnavailable."""
    now = {"service": service, "version": OUR_VERSION, "seen_at": db_now()}
    async with database.write() as connection:
        await connection.execute(
            database.insert(ServiceProcess)
            .values(id=f"{service}/{process_name()}", started_at=db_now(), **now)
            .on_conflict_do_update(index_elements=["id"], set_=now)
        )
        await connection.execute(delete(ServiceProcess).where(ServiceProcess.seen_at < db_now() - DELETE_AFTER_S))


async def heartbeat_loop(database: Database, service: str) -> None:
    """Write heartbeats until cancelled, then delete the row."""
    try:
        await repeat(lambda: heartbeat(database, service), ErrorLog(f"the heartbeat of this {service}"), every_s=BEAT_S)
    finally:
        await deregister(database, service)


async def deregister(database: Database, service: str) -> None:
    """Delete the row of this process, if the database is available."""
    try:
        async with database.write() as connection:
            await connection.execute(delete(ServiceProcess).where(ServiceProcess.id == f"{service}/{process_name()}"))
    except StorageUnavailable:
        pass  # the row expires instead


async def list_processes(database: Database) -> tuple[list[ProcessHeartbeat], float]:
    """The live processes, and how many seconds this machine's clock is ahead of the database's.

    Raises StorageUnavailable.
    """
    columns = (ServiceProcess.id, ServiceProcess.service, ServiceProcess.version)
    async with database.read() as connection:
        now = float((await connection.execute(select(db_now()))).scalar_one())
        ahead_s = time.time() - now
        rows = (await connection.execute(select(*columns, (db_now() - ServiceProcess.seen_at).label("seen_s")))).all()
    found = [ProcessHeartbeat(row.id, row.service, row.version, float(row.seen_s)) for row in rows]
    return [each for each in found if not is_dead_local_process(each.id.partition("/")[2])], ahead_s
