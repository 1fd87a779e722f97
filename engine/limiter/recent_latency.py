"""The latency of successful calls, and whether it has become much worse. Pure."""

from __future__ import annotations

MIN_CALLS = 20  # until so many calls were seen, the baseline is their mean
# Slow: the recent latency is above SLOW_FACTOR times the baseline plus SLOW_MARGIN_S.
SLOW_FACTOR = 4.0
SLOW_MARGIN_S = 1.0
BASELINE_WEIGHT = 0.02  # of a new call in the running means
RECENT_WEIGHT = 0.2


class RecentLatency:
    """Two exponentially weighted means of the seconds of successful calls: a slow baseline and a fast recent one."""

    __slots__ = ("_calls", "baseline_s", "recent_s")

    def __init__(self) -> None:
        self._calls = 0
        self.baseline_s = 0.0
        self.recent_s = 0.0

    def copy(self) -> RecentLatency:
        """A new one that starts with this baseline."""
        other = RecentLatency()
        other._calls, other.baseline_s, other.recent_s = self._calls, self.baseline_s, self.baseline_s
        return other

    def observe(self, seconds: float) -> bool:
        """Record a successful call. True when calls are far slower than the baseline, which slowly follows them."""
        if self._calls < MIN_CALLS:
            self._calls += 1
            self.baseline_s += (seconds - self.baseline_s) / self._calls
            self.recent_s = self.baseline_s
            return False
        self.baseline_s += (seconds - self.baseline_s) * BASELINE_WEIGHT
        self.recent_s += (seconds - self.recent_s) * RECENT_WEIGHT
        return self.recent_s > SLOW_FACTOR * self.baseline_s + SLOW_MARGIN_S
