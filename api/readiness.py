"""Whether this process can serve: each part is asked by one probe at a time, and an answer never waits for a part.

A broker that accepts and stays silent holds a probe for ten seconds; whoever asks again meanwhile shares that probe.
While somebody asks now and then, the parts are asked beside the requests, and an answer comes from memory.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping

from api.shared_task import SharedTask
from engine.queue import worker_heartbeats
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS

FRESH_S = {True: 2.0, False: 0.5}  # an answer of a part is used again for so long
ANSWER_S = 0.8  # the longest that a request waits for the parts
PROBE_S = 5.0
STALE_S = 5.0  # nobody waits for a part that was well so lately
LOOK_S = 0.5
ASKED_S = 60.0  # the parts are kept asked so long after a request


class Probe:
    """One part. `is_ok` is its last answer, and stands until the next: no answer in PROBE_S is a no."""

    def __init__(self, ask: Callable[[], Awaitable[bool]]) -> None:
        self._ask = ask
        self._shared = SharedTask(self._probe)
        self._answered_at = -math.inf
        self.is_ok = False

    def start(self) -> asyncio.Task[None] | None:
        """The probe under way, to be waited for; None where the last answer will do."""
        age_s = _now() - self._answered_at
        probe = self._shared.start() if age_s >= FRESH_S[self.is_ok] else None
        return None if self.is_ok and age_s < STALE_S else probe

    async def close(self) -> None:
        await self._shared.close()

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                self.is_ok = await self._ask()
        except (*DATABASE_ERRORS, TimeoutError):
            self.is_ok = False
        self._answered_at = _now()


class Readiness:
    """The state of the parts, by name."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self._asked_at = -math.inf

    @classmethod
    def of(cls, runtime: Runtime) -> Readiness:
        """That of database, broker and workers."""

        async def database() -> bool:
            await runtime.database.ping()
            return True

        async def workers() -> bool:
            return await worker_heartbeats.count_alive(runtime.database, runtime.settings.worker_seen_s) > 0

        return cls(
            {"database": Probe(database), "broker": Probe(runtime.notifier.reachable), "workers": Probe(workers)}
        )

    async def keep_fresh(self) -> None:
        """Until cancelled: ask the parts again before anybody must wait for it, while somebody asks at all."""
        while True:
            await asyncio.sleep(LOOK_S)
            if _now() - self._asked_at < ASKED_S:
                for probe in self._probes.values():
                    probe.start()

    async def parts(self) -> dict[str, bool]:
        """Each part, and whether it answers."""
        self._asked_at = _now()
        running = [task for probe in self._probes.values() if (task := probe.start()) is not None]
        if running:
            await asyncio.wait(running, timeout=ANSWER_S)
        return {name: probe.is_ok for name, probe in self._probes.items()}

    async def close(self) -> None:
        for probe in self._probes.values():
            await probe.close()


def _now() -> float:
    return asyncio.get_running_loop().time()
