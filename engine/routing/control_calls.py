"""Control calls: a short text of ours, sent to find out whether a route works. Shared results, one call a second.

A control call answers one of two questions. Does the route answer anybody (`diagnosis.control_call`: no options of a
caller, result shared)? Does it answer this caller, now (a bisection: the options and width of the batch, and never a
result from before the failure in question)?
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from engine.ledger.billing import CONTROL_TEXT
from engine.planning import token_estimator
from models.embedding import Batch, Options
from models.errors import EmbedmillError

FRESH_S = 1.0  # a result is shared for so long
NO_INDEX = -1  # of our text, which is no input of any job

Result = EmbedmillError | None


def control_batch(width: int, options: Options | None = None) -> Batch:
    """The batch of one control call."""
    return Batch([CONTROL_TEXT], [NO_INDEX], token_estimator.estimate(CONTROL_TEXT), width, options or Options())


class ControlCalls:
    """Results by route; None: the route answered well."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], asyncio.Task[Result]] = {}
        self._ended_at: dict[tuple[str, str], float] = {}  # on the event loop's clock

    async def share(self, key: tuple[str, str], make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of the call under way or just made, else of a new one made by `make`."""
        loop = asyncio.get_running_loop()
        call = self._calls.get(key)
        if call is None or (call.done() and loop.time() - self._ended_at.get(key, 0.0) > FRESH_S):
            call = self._calls[key] = loop.create_task(make())
            call.add_done_callback(lambda _: self._ended_at.update({key: loop.time()}))
        return await asyncio.shield(call)

    async def close(self) -> None:
        """Cancel the calls under way."""
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)
