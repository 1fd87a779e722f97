"""Tells congestion of a route, which many tenants meet, from trouble that one tenant alone meets. Pure.

What a caller sends may make its own calls slow or time out. Where calls of other tenants succeed meanwhile, the route
is healthy and keeps its concurrency limit.
"""

from __future__ import annotations

from collections import OrderedDict

SUCCESS_MEMORY_S = 5.0  # a success of another tenant counts as evidence for the route for so long
TROUBLE_MEMORY_S = 10.0  # trouble of another tenant counts as evidence against the route for so long
MAX_TENANTS = 64
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


class _Tenant:
    __slots__ = ("latency", "succeeded_at", "troubled_at")

    def __init__(self, latency: RecentLatency) -> None:
        self.latency = latency
        self.succeeded_at = self.troubled_at = float("-inf")


class CongestionDetector:
    """What each of the most recent tenants has met on one route. `now` is on one monotonic clock."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._latency = RecentLatency()

    @property
    def baseline_s(self) -> float:
        """The usual seconds of a successful call."""
        return self._latency.baseline_s

    def is_slow(self, tenant: str, seconds: float, now: float) -> bool:
        """Record a successful call. True when calls have become far slower than usual, for other tenants too."""
        state = self._state_of(tenant)
        self._latency.observe(seconds)
        if state.latency.observe(seconds):
            return self.is_shared(tenant, now)
        state.succeeded_at = now
        return False

    def is_shared(self, tenant: str, now: float) -> bool:
        """Record a call in trouble. False when only this tenant meets trouble."""
        self._state_of(tenant).troubled_at = now
        others = [state for name, state in self._tenants.items() if name != tenant]
        return any(now - other.troubled_at < TROUBLE_MEMORY_S for other in others) or not any(
            now - other.succeeded_at < SUCCESS_MEMORY_S for other in others
        )

    def _state_of(self, tenant: str) -> _Tenant:
        state = self._tenants.get(tenant)
        if state is None:
            state = self._tenants[tenant] = _Tenant(self._latency.copy())
            if len(self._tenants) > MAX_TENANTS:
                self._tenants.popitem(last=False)
        else:
            self._tenants.move_to_end(tenant)
        return state
