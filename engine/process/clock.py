"""Clocks: the database's may be set back or forward by somebody; this machine's only goes on, also while it sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# The two are read one after the other, through a connection that may be slow.
TOLERANCE_S = 2.0


def machine_clock() -> float:
    """Seconds that have passed for the outside world too, while this machine slept. Nobody can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True, slots=True)
class ClockNews:
    """What has happened between two looks. `step_s`: the database's clock was set forward by that, or back if < 0.

    `gap_s`: how long ago the look before was, however the clocks were set. Both are 0 at the first look.
    """

    step_s: float = 0.0
    gap_s: float = 0.0


class DatabaseClock:
    """Watches the database's clock against this machine's. `machine` is that, in seconds."""

    def __init__(self, machine: Callable[[], float] = machine_clock) -> None:
        self.machine = machine
        self._seen: tuple[float, float] | None = None
        self.spared_at: float | None = None  # when leases were last spared, by this machine's clock

    def observe(self, database_s: float, asked_at: float) -> ClockNews:
        """`database_s`: its clock; `asked_at`: this machine's, before it was asked."""
        answered_at = self.machine()
        at = (asked_at + answered_at) / 2
        seen, self._seen = self._seen, (database_s, at)
        if seen is None:
            return ClockNews()
        gap_s = at - seen[1]
        step_s = database_s - seen[0] - gap_s
        is_step = abs(step_s) > TOLERANCE_S + (answered_at - asked_at)
        return ClockNews(step_s if is_step else 0.0, gap_s)
