"""The budget of bytes that all requests together, and those of one project, may hold in this process.

A body that would exceed it waits, unread, until other requests release bytes; after a timeout it is refused. If every
holder waits for more (a deadlock), the newest request is refused at once and the others continue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from types import TracebackType

from engine.observability.telemetry import BODY_BYTES, BODY_REFUSALS
from models.errors import CapacityError, EmbedmillError, Overloaded, RateLimited

log = logging.getLogger("embedmill.api")
WAIT_S = 10.0
LOG_EVERY_S = 1.0
# Bodies up to this size cost little, and are never refused for what others hold.
FREE_BYTES = 64 * 1024


class ByteBudget:
    """Bytes held over all, and by project."""

    def __init__(self, max_bytes: int, max_project_bytes: int, *, wait_s: float = WAIT_S) -> None:
        self._max_bytes = max_bytes
        self._max_project_bytes = min(max_project_bytes, max_bytes)
        self._wait_s = wait_s
        self._of_project: Counter[str] = Counter()
        # Leases that hold bytes, by project; and those of them that wait for more.
        self._holders: Counter[str] = Counter()
        self._waiters: Counter[str] = Counter()
        self._released = asyncio.Event()
        self._refused, self._logged_at = 0, -LOG_EVERY_S
        self.held_bytes = 0

    def lease(self, project: str) -> ByteLease:
        """A lease of no bytes yet, for one request of the project."""
        return ByteLease(self, project)

    def resize(self, project: str, before: int, after: int) -> bool:
        """Change what a lease holds; False: there is no room for more. A lease may always shrink."""
        if before <= FREE_BYTES >= after:
            return True
        more, holders = _counted(after) - _counted(before), bool(_counted(after)) - bool(_counted(before))
        if more > 0 and self._lacking(project, more) is not None:
            return False
        self.held_bytes += more
        self._of_project[project] += more
        self._holders[project] += holders
        if not self._holders[project]:
            del self._holders[project], self._of_project[project]
        BODY_BYTES.set(self.held_bytes)
        if more < 0:
            self._released.set()
            self._released = asyncio.Event()
        return True

    async def wait(self, project: str, before: int, after: int) -> None:
        """Resize as soon as there is room. Raises RateLimited or Overloaded where none comes in time."""
        deadline = time.monotonic() + self._wait_s
        is_holder = bool(_counted(before))
        self._waiters[project] += is_holder
        try:
            while not self.resize(project, before, after):
                error = self._lacking(project, _counted(after) - _counted(before))
                if error is None:
                    continue
                if time.monotonic() >= deadline or self._is_stuck(project, error):
                    self._refuse(project, error)
                    raise error
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await self._released.wait()
        finally:
            self._waiters[project] -= is_holder
            if not self._waiters[project]:
                del self._waiters[project]

    def _is_stuck(self, project: str, error: EmbedmillError) -> bool:
        """True when all holders of the lacking bytes wait for more (a deadlock)."""
        if isinstance(error, RateLimited):
            return self._holders[project] == self._waiters[project] > 0
        return self._holders.total() == self._waiters.total() > 0

    def _refuse(self, project: str, error: EmbedmillError) -> None:
        """Count the refusal, and log it at a bounded rate."""
        BODY_REFUSALS.labels(error.code).inc()
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            log.warning(
                "%d bodies were refused for lack of memory: requests hold %d bytes, %d of them this project's",
                self._refused,
                self.held_bytes,
                self._of_project[project],
                extra={"project": project, "code": error.code},
            )
            self._refused, self._logged_at = 0, now

    def _lacking(self, project: str, more: int) -> CapacityError | RateLimited | None:
        if self._of_project[project] + more > self._max_project_bytes:
            return RateLimited(
                f"The requests of this project hold {self._max_project_bytes} bytes, which is its share: "
                "send fewer or smaller ones at once.",
                retry_after_s=2.0,
            )
        if self.held_bytes + more > self._max_bytes:
            return Overloaded("The server holds as many bytes of requests as it may: try again.", retry_after_s=2.0)
        return None


class ByteLease:
    """What one request holds. Use it as a context manager: what it holds is released at the end."""

    def __init__(self, budget: ByteBudget, project: str) -> None:
        self._budget = budget
        self._project = project
        self._bytes = 0

    def try_resize(self, size: int) -> bool:
        """Hold so many bytes from now on; False: there is no room."""
        if not self._budget.resize(self._project, self._bytes, size):
            return False
        self._bytes = size
        return True

    async def resize(self, size: int) -> None:
        """Hold so many bytes from now on, after waiting for them. Raises RateLimited or Overloaded."""
        if not self.try_resize(size):
            await self._budget.wait(self._project, self._bytes, size)
            self._bytes = size

    def __enter__(self) -> ByteLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.try_resize(0)


def _counted(size: int) -> int:
    return size if size > FREE_BYTES else 0
