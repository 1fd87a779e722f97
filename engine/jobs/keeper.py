"""Keeping: results go into the database as they land, at least once a second and once per thousand inputs."""

from __future__ import annotations

import asyncio
import logging
import time

from engine import failpoints
from engine.embedding import Flight
from engine.jobs.claim import Claim
from engine.jobs.record import record
from engine.runtime import Runtime
from models.embedding import Landed
from models.errors import EmbedmillError, StorageUnavailable

log = logging.getLogger("embedmill.jobs")

RECORD_INPUTS = 1024
RECORD_EVERY_S = 1.0
# A result was paid for: it is held and offered to a database that is down for as long as its worker may hold the shard.
PATIENCE_S = 60.0
PAUSE_S = (0.2, 0.5, 1.0, 2.0)


class Keeper:
    """Takes what lands and records it from a task of its own, beside the calls that are still under way."""

    def __init__(self, runtime: Runtime, held: Claim) -> None:
        self._runtime = runtime
        self._held = held
        self._landed: list[Landed] = []
        self._inputs = 0
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._task = asyncio.create_task(self._run())
        self.flight: Flight | None = None
        self.recorded = 0
        self.shard_done = False
        self.go_on = True

    def take(self, landed: Landed) -> None:
        failpoints.hit("after_upstream_before_commit")
        self._landed.append(landed)
        self._inputs += len(landed.indexes)
        if self._inputs >= RECORD_INPUTS:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECORD_EVERY_S, self._due.set)

    async def close(self) -> None:
        """Record the rest. Never raises: what the database would not take is done again by the next claim."""
        self._closing = True
        self._due.set()
        await self._task

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            parts, self._landed, self._inputs = self._landed, [], 0
            if parts:
                await self._record(parts)
            if self._closing and not self._landed:
                return

    async def _record(self, parts: list[Landed]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        pauses = iter(PAUSE_S)
        while True:
            try:
                recorded = await record(self._runtime, self._held, parts)
            except StorageUnavailable:
                if time.monotonic() > deadline:
                    log.error("paid results were lost: the database is down", extra={"job_id": self._held.job_id})
                    return
                await asyncio.sleep(next(pauses, PAUSE_S[-1]))
                continue
            except Exception:
                # A fault of ours must not hang the shard: it is logged whole, and the shard goes back.
                log.exception("results could not be recorded", extra={"job_id": self._held.job_id})
                self._stop("results could not be recorded")
                return
            self.recorded += sum(len(part.indexes) for part in parts)
            self.shard_done = recorded.shard_done
            if not recorded.go_on and not recorded.shard_done:
                self.go_on = False
                self._stop("the job wants no more of this shard")
            return

    def _stop(self, reason: str) -> None:
        if self.flight is not None and self.flight.stopping is None:
            self.flight.stopping = EmbedmillError(reason)
