"""Lease keeper: renews the lease of a running shard, and stops new calls once the lease may have run out.

The database's clock decides who holds a shard. The keeper counts on this machine's clock from before each request to
the database, so the worker stops before the database hands the shard to another one. A process that was suspended
finds the lease run out when it continues, before it sends anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.job_store import JobStore
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.run_calls import RunCalls
from engine.process.clock import machine_clock as clock
from engine.storage.database import DATABASE_ERRORS
from models.embedding import Batch, Call, Route
from models.errors import EmbedmillError

# Seconds until a failed heartbeat is repeated.
RENEW_RETRY_S = 1.0


class ShardStopped(EmbedmillError):
    """The run of a shard ends before its inputs are done: time budget, lost lease, ended job, or shutdown."""

    code = "stopped"


class JobOverdue(ShardStopped):
    """The deadline of the job has passed: no new calls. The sweep ends the job."""


class LeaseKeeper:
    """`requested_at`: clock() before the claim was requested. `on_lost` is called with the reason once it is lost.

    `calls`: the calls of the run, each of which needs the lease when it starts.
    """

    def __init__(
        self,
        store: JobStore,
        shard: ClaimedShard,
        calls: RunCalls,
        requested_at: float,
        *,
        on_lost: Callable[[str], None],
    ) -> None:
        self._store = store
        self._shard = shard
        self._calls = calls
        self._on_lost = on_lost
        self._until = requested_at + store.settings.lease_s
        self._blocked_reason: str | None = None

    def sending(self, batch: Batch, route: Route) -> str:
        """Called before each upstream call; returns its id. Raises ShardStopped when the lease may have run out."""
        if self._blocked_reason is not None:
            raise ShardStopped(self._blocked_reason)
        if clock() >= self._until:
            raise ShardStopped("the lease ran out")
        return self._calls.sending(batch, route)

    def failed(self, call_id: str, billed: Call | None) -> None:
        """Called after each call without results."""
        self._calls.failed(call_id, billed)

    def block_new_calls(self, reason: str) -> None:
        """Let no further call start, retries included."""
        self._blocked_reason = reason

    async def renew_until_lost(self) -> None:
        """Renew the lease until cancelled, or until it is lost."""
        settings = self._store.settings
        pause_s = settings.heartbeat_s
        while True:
            await asyncio.sleep(pause_s)
            requested_at = clock()
            remaining_s = self._until - requested_at
            if remaining_s <= 0:
                self._on_lost("the lease could not be renewed")
                return
            try:
                # After the time of one heartbeat a slow or locked database is asked again on another connection.
                async with asyncio.timeout(min(settings.heartbeat_s, remaining_s)):
                    renewed = await claims.heartbeat(self._store, self._shard)
            except (*DATABASE_ERRORS, TimeoutError):
                pause_s = min(RENEW_RETRY_S, settings.heartbeat_s)
                continue
            if not renewed:
                self._on_lost("the shard is no longer this worker's")
                return
            self._until = requested_at + settings.lease_s
            pause_s = settings.heartbeat_s
