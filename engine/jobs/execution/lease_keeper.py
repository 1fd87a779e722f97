"""Lease: a worker's own view of its claim. Kept alive while the shard runs; once it is over, no new call starts.

The database's clock decides whose a shard is. Here a clock of this machine only tells how long ago the database was
last sure of it, counted from before it was asked: so the worker gives up first, and a process that was frozen, its
heartbeat with it, finds its lease run out when it wakes, before it sends anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.in_flight_calls import RunCalls
from engine.process.clock import machine_clock as clock
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from models.embedding import Batch, Route
from models.errors import EmbedmillError

# A heartbeat that the database did not take is tried again this soon.
RENEW_RETRY_S = 1.0


class ShardStopped(EmbedmillError):
    """The worker lets go of a shard that may go on elsewhere: budget over, lease lost, job ended, shutdown."""

    code = "stopped"


class LeaseKeeper:
    """`asked_at`: clock() before the claim was asked for. `on_lost` is told why the shard is not ours any more."""

    def __init__(self, runtime: Runtime, shard: ClaimedShard, requested_at: float) -> None:
        self.in_flight = RunCalls(runtime.journal, shard)
        self._runtime = runtime
        self._shard = shard
        self._until = requested_at + runtime.settings.lease_s
        self._blocked_reason: str | None = None
        self.on_lost: Callable[[str], None] = lambda reason: None

    def sending(self, batch: Batch, route: Route) -> str:
        """Asked before each call. Raises ToldToStop when another worker may have the shard by now, or nobody shall."""
        if self._blocked_reason is not None:
            raise ShardStopped(self._blocked_reason)
        if clock() >= self._until:
            raise ShardStopped("the lease ran out")
        return self.in_flight.sending(batch, route)

    def failed(self, call_id: str, *, ambiguous: bool, wasted: bool = False) -> None:
        self.in_flight.failed(call_id, ambiguous=ambiguous, wasted=wasted)

    def block_new_calls(self, reason: str) -> None:
        """From now on no call starts, not even one that only waits to be made again."""
        self._blocked_reason = reason

    async def renew_until_lost(self) -> None:
        """Renew the lease until cancelled, or until it is lost."""
        settings = self._runtime.settings
        pause_s = settings.heartbeat_s
        while True:
            await asyncio.sleep(pause_s)
            requested_at = clock()
            remaining_s = self._until - requested_at
            if remaining_s <= 0:
                self.on_lost("the lease could not be renewed")
                return
            try:
                # A database that is slow or locked is given a heartbeat's time, then asked again on a fresh connection.
                async with asyncio.timeout(min(settings.heartbeat_s, remaining_s)):
                    is_held = await claims.heartbeat(self._runtime, self._shard)
            except (*DATABASE_ERRORS, TimeoutError):
                pause_s = min(RENEW_RETRY_S, settings.heartbeat_s)
                continue
            if not is_held:
                self.on_lost("the shard is no longer this worker's")
                return
            self._until = requested_at + settings.lease_s
            pause_s = settings.heartbeat_s
