"""Stop: the word that a run of calls is to end. Whoever waits within it hears it at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from models.errors import DeadlineExceeded, EmbedmillError


class CancellationToken:
    """Given once; the first reason stays. Belongs to one event loop."""

    __slots__ = ("_waits", "reason")

    def __init__(self) -> None:
        self.reason: EmbedmillError | None = None
        self._waits: set[asyncio.Timeout] = set()

    def give(self, reason: EmbedmillError) -> None:
        if self.reason is not None:
            return
        self.reason = reason
        for wait in self._waits:
            if not wait.expired():  # its time may be up in this very moment
                wait.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raise DeadlineExceeded once it was given. The reason itself is raised by whoever runs the calls."""
        if self.reason is not None:
            raise DeadlineExceeded("the run was told to stop")

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """Like asyncio.timeout(): what is waited for in it ends in TimeoutError after so long, or when it is given."""
        async with asyncio.timeout(max(0.0, seconds) if self.reason is None else 0.0) as limit:
            self._waits.add(limit)
            try:
                yield
            finally:
                self._waits.discard(limit)

    async def sleep(self, seconds: float) -> None:
        """Sleep so long, or until it is given."""
        try:
            async with self.within(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            return
