"""A database whose clock a test may set, on both databases: the function that db_now() asks is another one there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy import Engine, event, text

from engine.storage.database import Database

UNIX_EPOCH_DAY = 2440587.5


class SetClock:
    """Seconds that the database's clock is ahead of the true time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ahead_s = 0.0

    async def ahead(self, seconds: float) -> None:
        self._ahead_s = seconds
        if not self._database.is_sqlite:
            async with self._database.write() as connection:
                await connection.execute(text("update clock_ahead set seconds = :seconds"), {"seconds": seconds})

    def julianday(self, *_: Any) -> float:
        return UNIX_EPOCH_DAY + (time.time() + self._ahead_s) / 86400.0


@asynccontextmanager
async def settable_clock(url: str) -> AsyncIterator[SetClock]:
    """For a migrated database, before any connection that shall obey it is made."""
    database = Database(url)
    clock = SetClock(database)
    if database.is_sqlite:
        with _sqlite_function(clock):
            yield clock
    else:
        async with database.write() as connection:
            name = (await connection.execute(text("select current_database()"))).scalar_one()
            for statement in (
                "create table clock_ahead (seconds float8)",
                "insert into clock_ahead values (0)",
                "create function public.clock_timestamp() returns timestamptz volatile language sql as"
                " 'select pg_catalog.clock_timestamp() + make_interval(secs => seconds) from public.clock_ahead'",
                # PostgreSQL looks into its own schema first, unless it is told when to.
                f'alter database "{name}" set search_path = public, pg_catalog',
            ):
                await connection.execute(text(statement))
        await database.close()
        yield clock
    await database.close()


@contextmanager
def _sqlite_function(clock: SetClock) -> Iterator[None]:
    def connected(connection: Any, _record: Any) -> None:
        connection.create_function("julianday", 1, clock.julianday)

    event.listen(Engine, "connect", connected)
    try:
        yield
    finally:
        event.remove(Engine, "connect", connected)
