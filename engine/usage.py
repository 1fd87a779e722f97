"""The ledger's pen: one row per sync call or recorded part of a shard."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import insert

from engine.database import Database
from engine.telemetry import USAGE_WAITING
from models.base import PICODOLLAR, db_now, trace_id
from models.embedding import Landed, Route
from models.errors import StorageUnavailable
from models.usage import UsageRecord

log = logging.getLogger("embedmill.usage")
FLUSH_S = 0.5
FLUSH_ROWS = 200
WAITING_CAP = 100_000


def rows(
    parts: Sequence[Landed],
    *,
    project: str,
    key_id: str,
    lane: str,
    alias: str,
    user: str | None = None,
    job_id: str | None = None,
) -> list[dict[str, Any]]:
    """Ledger rows for what landed: one for each route that served a part of it."""
    by_route: dict[int, tuple[Route, list[Landed]]] = {}
    for part in parts:
        if part.route is not None:
            by_route.setdefault(id(part.route), (part.route, []))[1].append(part)
    return [
        {
            "id": trace_id("use"),
            "project": project,
            "key_id": key_id,
            "lane": lane,
            "job_id": job_id,
            "alias": alias,
            "provider": route.provider,
            "upstream_model": route.upstream_model,
            "end_user": user,  # the column's name: Core drops keys that it does not know
            "inputs": sum(len(part.indexes) for part in served),
            "calls": len(served),
            "prompt_tokens": sum(part.tokens for part in served),
            # Rounded here and once: whoever adds up these rows gets what was charged, to the picodollar.
            "cost_usd": sum((part.cost_usd for part in served), Decimal(0)).quantize(PICODOLLAR),
            "estimated": any(part.tokens_estimated for part in served),
        }
        for route, served in by_route.values()
    ]


class UsageBuffer:
    """Rows of sync calls, written together: a transaction each would cost more than all the rest of the request.

    A crash loses at most the rows of its last half second; a database that is down loses none of the last 100,000.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        if len(self._waiting) < WAITING_CAP:
            self._waiting.extend(records)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_S)
            self._wake.clear()
            try:
                await self.flush()
            except StorageUnavailable:
                log.warning("usage rows wait for the database", extra={"count": len(self._waiting)})
                self._wake.set()

    async def flush(self) -> None:
        """Write what waits. Rows leave the buffer only once they are committed."""
        async with self._writing:
            while self._waiting:
                some = self._waiting[:FLUSH_ROWS]
                await self._write(some)
                del self._waiting[: len(some)]
        USAGE_WAITING.set(len(self._waiting))

    async def _write(self, some: Sequence[dict[str, Any]]) -> None:
        try:
            await write(self._database, some)
        except StorageUnavailable:
            raise
        except Exception:
            # A row that the database refuses must not hold up all others: it is told from them one by one, and logged.
            if len(some) == 1:
                log.exception("a usage row was refused", extra={"provider": some[0]["provider"], "count": 1})
                return
            for record in some:
                await self._write([record])

    async def close(self) -> None:
        if self._task is not None:
            async with self._writing:  # never between a commit and the note of it: the rows would be written twice
                self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        try:
            await self.flush()
        except StorageUnavailable:
            log.error("usage rows were lost: the database is down at shutdown", extra={"count": len(self._waiting)})


async def write(database: Database, records: Sequence[dict[str, Any]]) -> None:
    async with database.write() as connection:
        await connection.execute(insert(UsageRecord).values(at=db_now()), list(records))
