"""Whether this process can serve: one probe at a time for each dependency, and answers from the last results.

A broker that accepts a connection and stays silent blocks a probe for ten seconds; requests in the meantime share that
probe. While /readyz is requested regularly, the probes run in the background and answers come from memory.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping

from api.shared_task import SharedTask
from engine.config.settings import WORKER_SEEN_S
from engine.queue import worker_heartbeats
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS

FRESH_S = {True: 2.0, False: 0.5}  # how long a result is reused
MAX_WAIT_S = 0.8  # the longest that a request waits for probes
PROBE_S = 5.0
STALE_S = 5.0  # a request does not wait when the last good result is younger
REFRESH_EVERY_S = 0.5
REFRESH_FOR_S = 60.0  # background probes go on for so long after a request


class Probe:
    """Probe of one dependency. `is_ok` is the last result; no answer within PROBE_S counts as a failure."""

    def __init__(self, check: Callable[[], Awaitable[bool]]) -> None:
        self._check = check
        self._shared = SharedTask(self._probe)
        self._probed_at = -math.inf
        self.is_ok = False

    def start(self) -> asyncio.Task[None] | None:
        """The running probe, to be awaited; None when the last result is recent enough."""
        age_s = _now() - self._probed_at
        probe = self._shared.start() if age_s >= FRESH_S[self.is_ok] else None
        return None if self.is_ok and age_s < STALE_S else probe

    async def close(self) -> None:
        """Cancel a probe that runs."""
        await self._shared.close()

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                self.is_ok = await self._check()
        except (*DATABASE_ERRORS, TimeoutError):
            self.is_ok = False
        self._probed_at = _now()


class Readiness:
    """The probes of all dependencies, by name."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self._requested_at = -math.inf

    @classmethod
    def of(cls, runtime: Runtime) -> Readiness:
        """The probes of database, broker and workers."""

        async def database() -> bool:
            await runtime.database.ping()
            return True

        async def workers() -> bool:
            return await worker_heartbeats.count_alive(runtime.database, WORKER_SEEN_S) > 0

        return cls(
            {"database": Probe(database), "broker": Probe(runtime.notifier.reachable), "workers": Probe(workers)}
        )

    async def keep_fresh(self) -> None:
        """Probe in the background while /readyz is requested. Runs until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_EVERY_S)
            if _now() - self._requested_at < REFRESH_FOR_S:
                for probe in self._probes.values():
                    probe.start()

    async def parts(self) -> dict[str, bool]:
        """Whether each dependency answers, by name."""
        self._requested_at = _now()
        running = [task for probe in self._probes.values() if (task := probe.start()) is not None]
        if running:
            await asyncio.wait(running, timeout=MAX_WAIT_S)
        return {name: probe.is_ok for name, probe in self._probes.items()}

    async def close(self) -> None:
        """Cancel all probes."""
        for probe in self._probes.values():
            await probe.close()


def _now() -> float:
    return asyncio.get_running_loop().time()
