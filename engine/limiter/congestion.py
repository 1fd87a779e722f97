"""Whose trouble it is: what one tenant alone meets is no fault of a route that serves others well. Pure.

What a caller sends may make its calls slow, or time out. Where calls of others end well meanwhile, and meet no trouble
of their own, the route is fit, and keeps its places.
"""

from __future__ import annotations

from collections import OrderedDict

from engine.limiter.recent_latency import RecentLatency

WELL_S = 5.0  # how long a good call of another tenant speaks for the route
TROUBLE_S = 10.0  # and how long another's trouble speaks against it
MOST_TENANTS = 64


class _Tenant:
    __slots__ = ("pulse", "troubled_at", "well_at")

    def __init__(self, pulse: RecentLatency) -> None:
        self.pulse = pulse
        self.well_at = self.troubled_at = float("-inf")


class CongestionDetector:
    """What each of the latest tenants has met on one route. `now` is on one monotonic clock."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._pulse = RecentLatency()

    @property
    def usual_s(self) -> float:
        return self._pulse.usual_s

    def is_slow(self, tenant: str, seconds: float, now: float) -> bool:
        """Note a call that ended well; True when calls have become far slower than usual, not this tenant's alone."""
        known = self._known(tenant)
        self._pulse.felt(seconds)
        if known.pulse.felt(seconds):
            return self.is_shared(tenant, now)
        known.well_at = now
        return False

    def is_shared(self, tenant: str, now: float) -> bool:
        """Note a call in trouble; False when it is this tenant's alone."""
        self._known(tenant).troubled_at = now
        others = [other for name, other in self._tenants.items() if name != tenant]
        return any(now - other.troubled_at < TROUBLE_S for other in others) or not any(
            now - other.well_at < WELL_S for other in others
        )

    def _known(self, tenant: str) -> _Tenant:
        known = self._tenants.get(tenant)
        if known is None:
            known = self._tenants[tenant] = _Tenant(self._pulse.copy())
            if len(self._tenants) > MOST_TENANTS:
                self._tenants.popitem(last=False)
        else:
            self._tenants.move_to_end(tenant)
        return known
