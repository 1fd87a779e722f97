"""Clocks: the database's may be set back or forward; this machine's is monotonic, and goes on while it sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# The two are read one after the other, through a connection that may be slow.
TOLERANCE_S = 2.0


def machine_clock() -> float:
    """Seconds on a monotonic clock that includes the time that this machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True, slots=True)
class ClockChange:
    """The change between two observations. `step_s`: the database's clock was set forward by so much, or back if < 0.

    `gap_s`: time since the observation before, by this machine's clock. Both are 0 at the first observation.
    """

    step_s: float = 0.0
    gap_s: float = 0.0


class DatabaseClock:
    """Compares the database's clock with this machine's (`machine`, in seconds)."""

    def __init__(self, machine: Callable[[], float] = machine_clock) -> None:
        self.machine = machine
        self._seen: tuple[float, float] | None = None
        self.spared_at: float | None = None  # when leases were last spared, by this machine's clock

    def observe(self, database_s: float, sent_at: float) -> ClockChange:
        """`database_s`: the database's clock; `sent_at`: this machine's clock before the query was sent."""
        answered_at = self.machine()
        at = (sent_at + answered_at) / 2
        seen, self._seen = self._seen, (database_s, at)
        if seen is None:
            return ClockChange()
        gap_s = at - seen[1]
        step_s = database_s - seen[0] - gap_s
        is_step = abs(step_s) > TOLERANCE_S + (answered_at - sent_at)
        return ClockChange(step_s if is_step else 0.0, gap_s)
