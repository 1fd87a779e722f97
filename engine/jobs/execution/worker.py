"""A worker process: claims the next shard for each message, and runs it."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable

from engine.jobs.execution.preemption import Preemptor
from engine.jobs.execution.shard_run import ShardRun
from engine.jobs.execution.watch import ShardWatch
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.observability import failpoints
from engine.process.clock import machine_clock as clock
from engine.runtime import Runtime
from models.errors import StorageUnavailable

log = logging.getLogger("embedmill.jobs")

DRAINING_PAUSE_S = 0.2

Claim = Callable[[], Awaitable[ClaimedShard | None]]


class Worker:
    """Runs shards, one for each call, and those that preempt them. `name`: of the process, for its leases."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.runtime = runtime
        self.name = name
        self._watch = ShardWatch(runtime.store, runtime.router.outages)

    async def run_next(self) -> bool:
        """Run the shard that is next by fair share. False: none was claimed."""
        return await self._run(lambda: claims.claim_next(self.runtime.store, self.name))

    async def run(
        self, shard_id: str, *, until: float | None = None, on_claim: Callable[[], None] = lambda: None
    ) -> bool:
        """Run this shard. `on_claim` is called once it is claimed. False: it could not be claimed."""
        return await self._run(lambda: claims.claim(self.runtime.store, shard_id, self.name), until, on_claim)

    async def _run(self, claim: Claim, until: float | None = None, on_claim: Callable[[], None] = lambda: None) -> bool:
        """Claim a shard, embed its open inputs, record the outcomes, and release the rest.

        `until`, on time.monotonic(): end of the worker's time budget; by default EMBEDMILL_SHARD_BUDGET_S from now.
        Runs of preempting shards have ended too when this returns.
        """
        if self.runtime.draining.is_set():
            # Messages are for others now: without a pause this worker would take one after the other, and drop them.
            await asyncio.sleep(DRAINING_PAUSE_S)
            return False
        if self.runtime.blocked_shards:
            log.debug("no shard is claimed while the database refuses results")
            return False
        requested_at = clock()
        try:
            shard = await claim()
        except StorageUnavailable as error:
            log.warning("%s; the scheduler notifies the workers again", error.message)
            return False
        if shard is None:
            return False
        failpoints.hit("after_claim")
        if shard.no_outages:
            self.runtime.router.outages.table_is_empty()
        on_claim()
        until = time.monotonic() + self.runtime.settings.shard_budget_s if until is None else until
        start_preemptor = functools.partial(self._start_preemptor, until)
        await ShardRun(self.runtime, shard, self._watch, start_preemptor, requested_at=requested_at, until=until).run()
        return True

    def _start_preemptor(self, until: float, shard_id: str) -> Preemptor:
        claimed = asyncio.Event()
        running = self.run(shard_id, until=until, on_claim=claimed.set)
        return Preemptor(asyncio.create_task(running), claimed)
