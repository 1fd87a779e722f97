"""Work threads: parsing, counting and hashing of what callers send, beside the event loop.

One project has one piece of work in hand at a time, and pieces are small: so however much one project sends, another's
next piece waits for one piece of each other project at the most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from engine.observability.telemetry import WORK_THREAD_SECONDS

T = TypeVar("T")
THREADS = 2


class WorkThreads:
    """Belongs to one event loop once it is used. Close it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="work")
        self._slots = asyncio.Semaphore(THREADS)
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}

    async def run(self, project: str, step: Callable[[], T]) -> T:
        """The result of one step of work, which should take some tens of milliseconds. What it raises is raised."""
        async with self.project_lock(project), self._slots:
            started = time.perf_counter()
            try:
                return await asyncio.get_running_loop().run_in_executor(self._executor, step)
            finally:
                WORK_THREAD_SECONDS.observe(time.perf_counter() - started)

    async def drive(self, project: str, steps: Iterator[T]) -> AsyncIterator[T]:
        """What an iterator yields, each of its steps run in a thread; others get their turn between two."""
        end = object()
        while True:
            found = await self.run(project, lambda: next(steps, end))
            if found is end:
                return
            yield found  # type: ignore[misc]  # it is not the end, hence a T

    @asynccontextmanager
    async def project_lock(self, project: str) -> AsyncIterator[None]:
        """Around work of a project on the event loop itself, in small steps: its other work waits meanwhile."""
        lock, users = self._turns.get(project) or (asyncio.Lock(), 0)
        self._turns[project] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns[project]
            if users == 1:
                del self._turns[project]
            else:
                self._turns[project] = (lock, users - 1)

    def close(self) -> None:
        """Stop the threads; steps that have not begun are cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)
