"""A client that hangs up cancels its request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request

# A client that hangs up within this time is not noticed before the answer: watching costs a task a request.
WATCH_AFTER_S = 0.05


@contextmanager
def cancelled_on_disconnect(request: Request) -> Iterator[None]:
    """Cancel the current task when the client hangs up. Upstream work is then cancelled with it."""
    task = asyncio.current_task()
    watcher: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        request.scope["client_gone"] = True
        if task is not None:
            task.cancel()

    def start_watcher() -> None:
        watcher.append(asyncio.create_task(watch()))

    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, start_watcher)
    try:
        yield
    finally:
        timer.cancel()
        for running in watcher:
            running.cancel()
