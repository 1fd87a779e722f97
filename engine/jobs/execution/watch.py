"""Watch: one statement a second for all running shards of a process.

It tells each run whether its job is still in progress, and whether a starved shard is to be served before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from engine.job_store import JobStore
from engine.jobs.scheduling import fair_share
from engine.jobs.scheduling.fair_share import QueuePosition
from engine.process.background import logging_errors
from engine.routing.outages import Outages
from engine.storage.database import DATABASE_ERRORS

POLL_EVERY_S = 1.25
# A free slot claims a shard within milliseconds of its message: a shard that is due for longer waits for a slot.
STARVED_AFTER_S = 0.5


class Watched(Protocol):
    """A run of a shard that is watched."""

    def observe(self, positions: Mapping[str, QueuePosition]) -> None:
        """Called with the positions of all watched shards, by id, and of the starved ones; deleted ones are absent."""


class ShardWatch:
    """Watches the running shards of one process while there are any."""

    def __init__(self, store: JobStore, outages: Outages) -> None:
        self._store = store
        self._outages = outages
        self._runs: dict[str, Watched] = {}
        self._polling: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watching(self, shard_id: str, run: Watched) -> Iterator[None]:
        """Watch a run until the block ends."""
        self._runs[shard_id] = run
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            del self._runs[shard_id]
            if not self._runs:
                self._polling.cancel()
                self._polling = None

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_EVERY_S)
            try:
                positions = await self._read()
            except DATABASE_ERRORS:
                continue
            for run in list(self._runs.values()):
                with logging_errors("a running shard could not be watched"):
                    run.observe(positions)

    async def _read(self) -> dict[str, QueuePosition]:
        attempts = self._store.settings.shard_attempts
        async with self._store.database.read() as connection:
            positions, outages = await fair_share.watch(connection, list(self._runs), attempts, STARVED_AFTER_S)
        if not outages:
            self._outages.table_is_empty()
        return positions
