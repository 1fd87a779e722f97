"""Control calls: a short text of ours, sent to find out whether a route works. Shared results, one call a second.

A control call answers one of two questions. Does the route answer anybody (`diagnosis.control_call`: no options of a
caller, result shared)? Does it answer this caller, now (a bisection: the options and width of the batch, and never a
result from before the failure in question)?
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from engine.ledger.call_cost import CONTROL_TEXT
from engine.planning.token_estimator import estimate
from models.embedding import Batch, Options
from models.errors import EmbedmillError

FRESH_S = 1.0  # a result is shared for so long
NO_INDEX = -1  # of our text, which is no input of any job

Result = EmbedmillError | None


def control_batch(width: int, options: Options | None = None, text: str = CONTROL_TEXT) -> Batch:
    """The batch of one call with a text of ours."""
    return Batch([text], [NO_INDEX], estimate(text), width, options or Options())


class SharedControlCall:
    """The latest control call to one route. Its result None: the route answered well."""

    __slots__ = ("_ended_at", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[Result] | None = None
        self._ended_at = 0.0  # on the event loop's clock

    async def share(self, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of the call under way or just made, else of a new one made by `make`."""
        loop = asyncio.get_running_loop()
        task = self._task
        if task is None or (task.done() and loop.time() - self._ended_at > FRESH_S):
            task = self._task = loop.create_task(make())
            task.add_done_callback(self._record_end)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel the call under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _record_end(self, task: asyncio.Task[Result]) -> None:
        self._ended_at = task.get_loop().time()
