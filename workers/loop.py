"""One event loop for the lifetime of a worker process, on a thread of its own.

`asyncio.run` for each task would leave pooled connections on a closed loop. Everything that owns a socket is created
after the fork on this loop, and heartbeats continue while the main thread waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any

from engine.batches.composition import step_worker_of
from engine.config.secrets import REFRESH_EVERY_S
from engine.config.settings import WORKER_SEEN_S, Settings
from engine.jobs.composition import dispatcher_of
from engine.jobs.execution.outage_waits import try_changed_secrets
from engine.jobs.execution.worker import Worker
from engine.jobs.recording.orphaned_calls import record_orphaned_calls
from engine.jobs.recording.spool_replay import replay
from engine.process.background import ErrorLog, repeat
from engine.queue import process_heartbeats, worker_heartbeats
from engine.runtime import Runtime
from models.errors import EmbedmillError
from workers.idle import IdleWatch, MainProcess

log = logging.getLogger("embedmill.worker")

STOP_S = 15.0
RELEASE_S = 10.0
# Celery does not wait for a shard that this process claimed without a message, so stop() waits for its calls in flight.
FINISH_CALLS_S = 75.0
RECOVER_EVERY_S = 5.0
# Steps stop between two pieces of their work.
STEP_STOP_S = 10.0


class LoopThread:
    """A running event loop with a Runtime on it."""

    def __init__(self, settings: Settings) -> None:
        self.runtime = Runtime.open(settings)
        self.worker = Worker(self.runtime, worker_heartbeats.process_name())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedmill-loop", daemon=True)
        self._thread.start()
        self._idle = IdleWatch(self.worker, MainProcess().end)
        self._duties = [
            self._submit(worker_heartbeats.heartbeat_loop(self.runtime.database, self.worker.name, slots=1)),
            self._submit(self._recover_repeatedly()),
            self._submit(process_heartbeats.heartbeat_loop(self.runtime.database, "worker")),
            self._submit(self._reload_secrets_repeatedly()),
            self._submit(
                worker_heartbeats.quota_share_loop(self.runtime.database, self.runtime.limiters, WORKER_SEEN_S)
            ),
        ]
        self._watching = self._submit(self._idle.watch())
        steps = step_worker_of(self.runtime, self.worker.name)
        self._steps = self._submit(steps.run())

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine to its end; when this thread is interrupted (a time limit), cancel it and wait for it."""
        running: list[asyncio.Task[Any]] = []

        async def owned() -> None:
            if (task := asyncio.current_task()) is not None:
                running.append(task)
            self._idle.message_started()
            try:
                await work
            finally:
                self._idle.message_done()

        future = self._submit(owned())
        try:
            future.result()
        finally:
            if not future.done():  # this thread was interrupted
                # The task is cancelled, not the future: it records its results and releases its shard first, and the
                # future tells when that is done.
                for task in running:
                    self._loop.call_soon_threadsafe(task.cancel)
                with contextlib.suppress(CancelledError, FutureTimeout):
                    future.result(timeout=RELEASE_S)

    def drain(self) -> None:
        """Start no new upstream calls, and release the shards after their calls in flight. Safe in a signal handler."""
        self._loop.call_soon_threadsafe(self.runtime.draining.set)

    def stop(self) -> None:
        """Drain, deregister the worker and end the loop."""
        self.drain()
        if self._idle.is_running_shard:
            with contextlib.suppress(CancelledError, FutureTimeout):
                self._watching.result(timeout=FINISH_CALLS_S)
        with contextlib.suppress(CancelledError, FutureTimeout):  # they store their progress, and release their lease
            self._steps.result(timeout=STEP_STOP_S)
        for duty in (self._watching, self._steps, *self._duties):
            duty.cancel()
        with contextlib.suppress(CancelledError, FutureTimeout):
            self._submit(self._deregister()).result(timeout=STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=STOP_S)

    async def _deregister(self) -> None:
        try:
            await worker_heartbeats.deregister(self.runtime.database, self.worker.name)
        except EmbedmillError as error:
            log.warning("this worker could not sign off: %s", error.message)
        finally:
            await self.runtime.close()

    async def _recover_repeatedly(self) -> None:
        """Repeatedly record what dead processes of this machine left, and reserve disk space for results."""

        runtime, store = self.runtime, self.runtime.store
        # Separate loops, so that one that the database refuses does not delay the others.
        await asyncio.gather(
            _repeat("keeping room on the disk", lambda: asyncio.to_thread(runtime.spool.reserve)),
            _repeat("recording spooled results", lambda: replay(store, runtime.spool)),
            _repeat("noting the calls of dead processes", lambda: record_orphaned_calls(store, runtime.journal)),
            _repeat("writing spooled usage rows", runtime.usage.replay),
        )

    async def _reload_secrets_repeatedly(self) -> None:
        secrets, outages = self.runtime.upstream.secrets, self.runtime.router.outages
        refresh = partial(try_changed_secrets, secrets, outages, dispatcher_of(self.runtime))
        await repeat(refresh, ErrorLog("reading secret files"), every_s=REFRESH_EVERY_S)

    def _submit(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _repeat(activity: str, work: Callable[[], Awaitable[object]]) -> None:
    await repeat(work, ErrorLog(activity), every_s=RECOVER_EVERY_S)


_current: LoopThread | None = None


def start(settings: Settings) -> None:
    """Create this process's loop; called in each child after the fork."""
    global _current
    # Not uvloop: with aiohttp it nearly doubles the cost of megabyte replies, which is what batches bring.
    _current = LoopThread(settings)


def current() -> LoopThread:
    """This process's loop. Raises RuntimeError before start()."""
    if _current is None:
        raise RuntimeError("the worker process has no event loop: worker_process_init did not run")
    return _current


def stop() -> None:
    """Stop this process's loop, if it has one."""
    global _current
    if _current is not None:
        _current.stop()
        _current = None
