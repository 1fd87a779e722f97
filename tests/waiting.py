"""Waiting for conditions instead of sleeping for guesses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float, *, every_s: float = 0.05, what: str = "") -> T:
    """Poll until the condition is truthy and return its value. Raises AssertionError with the last value otherwise."""
    gives_up_at = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() >= gives_up_at:
            raise AssertionError(f"{what or 'the condition'} did not hold within {timeout_s:g} s; last: {value!r}")
        time.sleep(every_s)
    return value


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """The same for what happens on this event loop. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # state of ours that has no event
            await asyncio.sleep(0.005)
