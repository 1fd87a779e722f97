"""The state of each route of a model, for whoever asks: is it called, how does it answer, what is left of its quota.

Outages are those of all processes. Latencies and success rates are of the calls of this process: the ledger, which all
processes share, has no row of a call that failed without being billed, so its share of successes would be too high.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.routing.router import Router
from models.embedding import Alias, Route
from providers.rate_limit_headers import RateLimitHeaders

WINDOWS_S: Mapping[str, float] = {"15m": 900.0, "1h": 3600.0, "1d": 86_400.0}
PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95}
QUARANTINED = "its vectors have changed: it is called again when an operator ends the quarantine"


@dataclass(frozen=True, slots=True)
class Breaker:
    """The circuit breaker of a route: open during an outage, half-open while its health probe is under way."""

    state: Literal["closed", "open", "half_open"]
    reason: str | None = None
    next_attempt_at: float | None = None  # unix seconds


@dataclass(frozen=True, slots=True)
class RouteReport:
    """One route now. None as a number: there were no calls."""

    route: Route
    status: Literal["up", "down", "quarantined"]
    breaker: Breaker
    latency_s: Mapping[str, float | None]  # by percentile
    success_rate: Mapping[str, float | None]  # by window
    quotas: RateLimitHeaders


def report(router: Router, alias: Alias) -> list[RouteReport]:
    """A report of each route, in the order of the configuration; outages as this process knows them."""
    return [_report(router, alias, route) for route in alias.routes]


def _report(router: Router, alias: Alias, route: Route) -> RouteReport:
    state, now = router.state_of(route), time.monotonic()
    breaker = _breaker(router, alias, route)
    status: Literal["up", "down", "quarantined"] = "up"
    if route not in router.trusted(alias):
        status = "quarantined"
    elif breaker.state != "closed":
        status = "down"
    return RouteReport(
        route,
        status,
        breaker,
        {name: state.recent_calls.latency_s(now, share) for name, share in PERCENTILES.items()},
        {name: state.recent_calls.success_rate(now, window_s) for name, window_s in WINDOWS_S.items()},
        state.limiter.quotas(),
    )


def _breaker(router: Router, alias: Alias, route: Route) -> Breaker:
    if (*route.key, alias.space) in router.quarantined:
        return Breaker("open", QUARANTINED)
    if (reason := router.unverified_reason(route)) is not None:
        return Breaker("open", reason)
    outage = router.outages.of(route)
    if outage is None:
        return Breaker("closed")
    return Breaker(
        "half_open" if outage.is_probe_under_way else "open",
        outage.cause.message,
        time.time() + outage.next_attempt_in_s,
    )
