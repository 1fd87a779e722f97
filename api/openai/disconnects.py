"""A client that hangs up cancels its request."""

from __future__ import annotations

import asyncio

from fastapi import Request

# A client that hangs up within this time is not noticed before the answer: watching costs a task a request.
WATCH_AFTER_S = 0.05


class CancelledOnDisconnect:
    """A block whose task is cancelled when the client hangs up. Upstream work is then cancelled with it."""

    __slots__ = ("_request", "_task", "_timer", "_watcher")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)

    def __exit__(self, *raised: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._request.scope["client_gone"] = True
        if self._task is not None:
            self._task.cancel()
