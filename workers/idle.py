"""What a worker process does that hears nothing: it takes work unasked, and ends a worker that has gone deaf.

A dead broker, or one that lost its data, then costs latency only: an idle process takes one shard at a time by itself,
in the order of dispatch. And a main process that is alive but no longer listens, as clients of Redis were seen to do
after a reconnect, is told to stop, so that its supervisor starts it anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

from engine.jobs.execution.worker import run_shard
from engine.jobs.scheduling.overdue_shards import find_overdue_shard
from engine.process.background import ErrorLog
from engine.runtime import Runtime

log = logging.getLogger("embedmill.worker")

POLL_EVERY_S = 2.0
# A main process that does not stop when it is told to does not run its loop any more.
KILL_AFTER_S = 20.0


class IdleWatch:
    """Looks after one worker process. `end_worker` is called once it is sure that messages do not arrive here."""

    def __init__(self, runtime: Runtime, worker: str, end_worker: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        self._runtime = runtime
        self._worker = worker
        self._end_worker = end_worker
        self._messages = 0
        self._silent_since: float | None = None
        self._last_silent_at = 0.0

    def message_started(self) -> None:
        self._messages += 1
        self._silent_since = None

    def message_done(self) -> None:
        self._messages -= 1

    async def watch(self) -> None:
        """Look for shards that wait in vain, until this process drains."""
        poll_every_s = min(POLL_EVERY_S, self._runtime.settings.claim_unannounced_after_s)
        errors = ErrorLog("looking for shards that wait")
        while not self._runtime.draining.is_set():
            await asyncio.sleep(poll_every_s * random.uniform(0.5, 1.5))
            if self._messages:
                continue
            try:
                await self.claim_overdue_shard()
            except Exception as error:
                errors.failed(error)
            else:
                errors.succeeded()

    async def claim_overdue_shard(self) -> None:
        """Run one shard whose message did not come. Raises StorageUnavailable."""
        overdue = await find_overdue_shard(self._runtime)
        if overdue is None:
            return
        if overdue.announced and await self._gets_no_messages():
            log.error("messages do not arrive although the broker answers: this worker restarts")
            await self._end_worker(self._runtime.draining)
            return
        if await run_shard(self._runtime, overdue.shard_id, self._worker):
            log.info("a shard was taken without a message", extra={"shard_id": overdue.shard_id})

    async def _gets_no_messages(self) -> bool:
        """True when rung shards have waited for so long, and no message came here, that it is not chance any more."""
        watchdog_s = self._runtime.settings.watchdog_s
        if not await self._runtime.notifier.reachable():
            self._silent_since = None
            return False
        now = time.monotonic()
        if self._silent_since is None or now - self._last_silent_at > 3 * watchdog_s:
            self._silent_since = now
        self._last_silent_at = now
        return now - self._silent_since >= watchdog_s


class MainProcess:
    """The worker's main process, as one of its children knows it."""

    def __init__(self) -> None:
        self._pid = os.getppid()

    async def end(self, draining: asyncio.Event) -> None:
        """Ask it to stop; kill it when it does not even pass that on, as `draining` would tell."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(KILL_AFTER_S):
                await draining.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if os.getppid() == self._pid:
            os.kill(self._pid, number)
