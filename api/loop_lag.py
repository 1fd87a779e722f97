"""Measures how late the event loop runs due callbacks: blocking code and a held interpreter lock show here."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from engine.observability.telemetry import LOOP_DELAY_SECONDS, LOOP_LAG_SECONDS

SAMPLE_EVERY_S = 0.05
# Longer than the usual pause between two scrapes of the metrics, so that no delay is missed by all of them.
WINDOW_S = 60.0


class SlidingMaximum:
    """The largest value of the last WINDOW_S seconds, kept as a monotonic queue."""

    def __init__(self) -> None:
        self._candidates: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> float:
        """Add a value measured at `now` (seconds). Returns the largest value of the window."""
        while self._candidates and self._candidates[-1][1] <= value:
            self._candidates.pop()
        self._candidates.append((now, value))
        while self._candidates[0][0] < now - WINDOW_S:
            self._candidates.popleft()
        return self._candidates[0][1]


async def watch_lag() -> None:
    """Measure until cancelled."""
    maximum = SlidingMaximum()
    while True:
        due = time.monotonic() + SAMPLE_EVERY_S
        await asyncio.sleep(SAMPLE_EVERY_S)
        now = time.monotonic()
        lag_s = max(0.0, now - due)
        LOOP_DELAY_SECONDS.observe(lag_s)
        LOOP_LAG_SECONDS.set(maximum.add(now, lag_s))
