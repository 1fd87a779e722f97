"""Waiting for conditions instead of sleeping for guesses."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float, *, every_s: float = 0.05, what: str = "") -> T:
    """Poll until the condition is truthy and return its value. Raises AssertionError with the last value otherwise."""
    gives_up_at = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() >= gives_up_at:
            raise AssertionError(f"waited {timeout_s:g} s for {what or 'a condition'}; last: {value!r}")
        time.sleep(every_s)
    return value


async def until(
    condition: Callable[[], object], timeout_s: float = 30.0, *, every_s: float = 0.005, what: str = ""
) -> None:
    """The same on an event loop, which goes on meanwhile. The condition may be an async function."""
    value: object = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return
                await asyncio.sleep(every_s)
    except TimeoutError as error:
        raise AssertionError(f"waited {timeout_s:g} s for {what or 'a condition'}; last: {value!r}") from error
