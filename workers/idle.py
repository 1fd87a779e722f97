"""Idle polling: claims due shards when no message arrives, and restarts the worker if messages stay away although the
broker has some.

So a broker that is down or lost its data costs latency only. A main process that is alive but receives nothing, as
happens with Redis clients after a reconnect, is told to stop, so that its supervisor restarts it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

from engine.jobs.execution.worker import Worker
from engine.jobs.scheduling import fair_share
from engine.process.background import ErrorLog

log = logging.getLogger("embedmill.worker")

POLL_EVERY_S = 2.0
# A main process that does not stop within this time has a blocked event loop.
KILL_AFTER_S = 20.0


class IdleWatch:
    """Idle polling of one worker process. `end_worker` is called once it is certain that no messages arrive.

    `watchdog_s`: seconds of silence until then; by default those of the settings.
    """

    def __init__(
        self,
        worker: Worker,
        end_worker: Callable[[asyncio.Event], Awaitable[None]],
        *,
        watchdog_s: float | None = None,
    ) -> None:
        self._watchdog_s = worker.runtime.settings.watchdog_s if watchdog_s is None else watchdog_s
        self._worker = worker
        self._runtime = worker.runtime
        self._end_worker = end_worker
        self.is_running_shard = False  # one that no message started
        self._messages = 0
        self._silent_since: float | None = None
        self._last_silent_at = 0.0

    def message_started(self) -> None:
        """A message has arrived and is being handled."""
        self._messages += 1
        self._silent_since = None

    def message_done(self) -> None:
        """The message was handled."""
        self._messages -= 1

    async def watch(self) -> None:
        """Poll for shards that wait for a worker until this process drains."""
        poll_every_s = min(POLL_EVERY_S, self._runtime.settings.idle_claim_s)
        errors = ErrorLog("looking for shards that wait")
        while not self._runtime.draining.is_set():
            await asyncio.sleep(poll_every_s * random.uniform(0.5, 1.5))
            with errors.round():
                # Without messages an idle process works through the queue at once, not one shard a poll.
                while not self._messages and await self.claim_without_message():
                    pass

    async def claim_without_message(self) -> bool:
        """Run a shard that has waited too long for a worker. False: there is none. Raises StorageUnavailable."""
        settings = self._runtime.settings
        async with self._runtime.database.read() as connection:
            if not await fair_share.starved_shards(connection, settings.shard_attempts, settings.idle_claim_s):
                return False
        if await self._gets_no_messages():
            log.error("messages do not arrive although the broker has some: this worker restarts")
            await self._end_worker(self._runtime.draining)
            return False
        self.is_running_shard = True
        try:
            if not await self._worker.run_next():
                return False
        finally:
            self.is_running_shard = False
        log.info("a shard waited for a worker without a message, and was run")
        return True

    async def _gets_no_messages(self) -> bool:
        """True when for so long shards and messages have waited, and no message has arrived here."""
        if not await self._runtime.notifier.waiting():
            self._silent_since = None
            return False
        now = time.monotonic()
        if self._silent_since is None or now - self._last_silent_at > 3 * self._watchdog_s:
            self._silent_since = now
        self._last_silent_at = now
        return now - self._silent_since >= self._watchdog_s


class MainProcess:
    """The worker's main process, seen from one of its children."""

    def __init__(self) -> None:
        self._pid = os.getppid()

    async def end(self, draining: asyncio.Event) -> None:
        """Ask it to stop; kill it when it does not pass the signal on, which would set `draining`."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(KILL_AFTER_S):
                await draining.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if os.getppid() == self._pid:
            os.kill(self._pid, number)
