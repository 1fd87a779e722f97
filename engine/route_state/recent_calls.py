"""The recent calls of one route in this process: how long the answered ones took, and which share was answered. Pure.

Memory is bounded: the latest latencies, and counts of calls by minute and by quarter of an hour. All instants are
passed in, in seconds of one clock that never goes back.
"""

from __future__ import annotations

import math
from collections import deque

LATENCIES = 256
LATENCY_MAX_AGE_S = 3600.0
USUAL_OF = 20  # fewer calls do not say what is usual
MINUTE_S, MINUTES = 60.0, 60
QUARTER_S, QUARTERS = 900.0, 96


class _Counts:
    """Calls and answered calls in slots of equal length. The oldest slot is used again for the newest."""

    __slots__ = ("_answered", "_calls", "_number", "_slot_s")

    def __init__(self, slot_s: float, slots: int) -> None:
        self._slot_s = slot_s
        # One slot more than a window has: the current one has only begun.
        self._calls, self._answered, self._number = [0] * (slots + 1), [0] * (slots + 1), [-1] * (slots + 1)

    def add(self, now: float, *, is_answered: bool) -> None:
        number = int(now // self._slot_s)
        at = number % len(self._number)
        if self._number[at] != number:
            self._number[at], self._calls[at], self._answered[at] = number, 0, 0
        self._calls[at] += 1
        self._answered[at] += is_answered

    def share(self, now: float, window_s: float) -> float | None:
        """The answered share of the calls of the window; it may reach up to one slot further back. None: no calls."""
        newest = int(now // self._slot_s)
        oldest = newest - int(window_s // self._slot_s)
        slots = [at for at, number in enumerate(self._number) if oldest <= number <= newest]
        calls = sum(self._calls[at] for at in slots)
        return sum(self._answered[at] for at in slots) / calls if calls else None


class RecentCalls:
    """Belongs to one event loop."""

    __slots__ = ("_latencies", "_minutes", "_quarters")

    def __init__(self) -> None:
        self._latencies: deque[tuple[float, float]] = deque(maxlen=LATENCIES)  # instant and seconds
        self._minutes = _Counts(MINUTE_S, MINUTES)
        self._quarters = _Counts(QUARTER_S, QUARTERS)

    def answered(self, now: float, seconds: float) -> None:
        """A call was answered with vectors after so many seconds."""
        self._latencies.append((now, seconds))
        self._count(now, is_answered=True)

    def took_at_least(self, now: float, seconds: float) -> None:
        """A call was given up after so many seconds through no fault of the route: it is no failure, but was slow."""
        self._latencies.append((now, seconds))

    def failed(self, now: float) -> None:
        """A call failed through no fault of its inputs."""
        self._count(now, is_answered=False)

    def latency_s(self, now: float, share: float) -> float | None:
        """Such a share of the answered calls of the last hour took no longer (nearest rank). None: there were none."""
        recent = sorted(seconds for at, seconds in self._latencies if now - at <= LATENCY_MAX_AGE_S)
        return recent[max(0, math.ceil(share * len(recent)) - 1)] if recent else None

    def usual_latency_s(self, now: float, share: float) -> float | None:
        """As `latency_s`, where enough calls of the last hour say so; else None."""
        if len(self._latencies) < USUAL_OF or now - self._latencies[-USUAL_OF][0] > LATENCY_MAX_AGE_S:
            return None
        return self.latency_s(now, share)

    def success_rate(self, now: float, window_s: float) -> float | None:
        """The answered share of the calls of the window, at most a day; None: there were none."""
        counts = self._minutes if window_s <= MINUTE_S * MINUTES else self._quarters
        return counts.share(now, window_s)

    def _count(self, now: float, *, is_answered: bool) -> None:
        self._minutes.add(now, is_answered=is_answered)
        self._quarters.add(now, is_answered=is_answered)
