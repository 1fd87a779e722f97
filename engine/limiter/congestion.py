"""Tells congestion of a route, which many tenants meet, from trouble that one tenant alone meets. Pure.

What a caller sends may make its own calls slow or time out. Where calls of other tenants succeed meanwhile, the route
is healthy and keeps its concurrency limit.
"""

from __future__ import annotations

from collections import OrderedDict

from engine.limiter.recent_latency import RecentLatency

SUCCESS_MEMORY_S = 5.0  # a success of another tenant counts as evidence for the route for so long
TROUBLE_MEMORY_S = 10.0  # trouble of another tenant counts as evidence against the route for so long
MAX_TENANTS = 64


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
