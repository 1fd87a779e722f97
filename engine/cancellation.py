"""Cancellation token for one embedding run. `timeout()` and `sleep()` end immediately once it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from models.errors import DeadlineExceeded, EmbedmillError


class CancellationToken:
    """Can be cancelled once: the first reason stays. Belongs to one event loop."""

    __slots__ = ("_timeouts", "reason")

    def __init__(self) -> None:
        self.reason: EmbedmillError | None = None
        self._timeouts: set[asyncio.Timeout] = set()

    def cancel(self, reason: EmbedmillError) -> None:
        """Cancel, and end all waits within `timeout()`."""
        if self.reason is not None:
            return
        self.reason = reason
        for timeout in self._timeouts:
            if not timeout.expired():  # it may expire in this very moment
                timeout.reschedule(asyncio.get_running_loop().time())

    def raise_if_cancelled(self) -> None:
        """Raise DeadlineExceeded once cancelled. The reason itself is raised by the code that runs the calls."""
        if self.reason is not None:
            raise DeadlineExceeded("the run was told to stop")

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        """Like asyncio.timeout(). Raises TimeoutError after so many seconds, or once cancelled."""
        async with asyncio.timeout(max(0.0, seconds) if self.reason is None else 0.0) as limit:
            self._timeouts.add(limit)
            try:
                yield
            finally:
                self._timeouts.discard(limit)

    async def sleep(self, seconds: float) -> None:
        """Sleep so many seconds, or until cancelled."""
        try:
            async with self.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            return
