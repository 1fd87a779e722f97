"""Work that many requests ask for at the same time and that is done once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedTask(Generic[T]):
    """Runs `work` at most once at a time; whoever comes meanwhile gets the same result. No caller's end ends it."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None

    def start(self) -> asyncio.Task[T]:
        """The task that is under way, or a fresh one."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return self._task

    async def result(self) -> T:
        """The result of the running task, or of a new one."""
        return await asyncio.shield(self.start())

    async def close(self) -> None:
        """Cancel the running task and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> T:
        return await self._work()
