"""Control calls: a short text of ours. Of those that all may share, one at a time and one a second for each route.

Two questions are asked with it. Does the route answer anybody? (`outage_check.control`: no option of a caller, shared.)
Does it answer this caller, now? (a search for a poison input: the options and width of the batch, and never an answer
from before the failure that is judged.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from engine.ledger.billing import CONTROL_TEXT
from engine.planning import tokens
from models.embedding import Batch, Options
from models.errors import EmbedmillError

FRESH_S = 1.0  # what one control call has shown is believed so long
NO_INDEX = -1  # of a text of ours, which is no input of any job

Result = EmbedmillError | None


def control_batch(width: int, options: Options | None = None) -> Batch:
    """The batch of one control call."""
    return Batch([CONTROL_TEXT], [NO_INDEX], tokens.estimate(CONTROL_TEXT), width, options or Options())


class ControlCalls:
    """Results by route; None: the route answered well."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], asyncio.Task[Result]] = {}
        self._ended_at: dict[tuple[str, str], float] = {}  # on the event loop's clock

    async def ask(self, key: tuple[str, str], make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of the call under way or just made, else of one that `make` makes now."""
        loop = asyncio.get_running_loop()
        call = self._calls.get(key)
        if call is None or (call.done() and loop.time() - self._ended_at.get(key, 0.0) > FRESH_S):
            call = self._calls[key] = loop.create_task(make())
            call.add_done_callback(lambda _: self._ended_at.update({key: loop.time()}))
        return await asyncio.shield(call)

    async def close(self) -> None:
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)
