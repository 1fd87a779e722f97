"""The order in which routes of one priority are tried. Pure, but for chance and the clock."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence

from engine.route_state.state import RouteState
from models.embedding import Route, Strategy

StateOf = Callable[[Route], RouteState]
Rank = Callable[[Route, RouteState, str], float]
# A route's rank within its priority: the lowest is tried first.


def _weighted(route: Route, state: RouteState, key: str) -> float:
    # A weighted shuffle: sort by random ** (1 / weight), largest first.
    return -math.pow(random.random(), 1.0 / max(route.weight, 1))


def _least_cost(route: Route, state: RouteState, key: str) -> float:
    return float(route.usd_per_million_tokens)


def _least_latency(route: Route, state: RouteState, key: str) -> float:
    # One that was never called is tried, or it would never be known.
    return state.recent_calls.latency_s(time.monotonic(), MEDIAN) or 0.0


def _least_busy(route: Route, state: RouteState, key: str) -> float:
    return state.in_flight / max(route.weight, 1)


def _hash(route: Route, state: RouteState, key: str) -> float:
    # Rendezvous hashing: a caller keeps its route while it is there, and a route that goes moves only its own callers.
    digest = hashlib.blake2b(f"{key}\0{route.key}".encode(), digest_size=8).digest()
    return -math.pow(int.from_bytes(digest) / 2.0**64, 1.0 / max(route.weight, 1))


STRATEGIES: Mapping[Strategy, Rank] = {
    "weighted": _weighted,
    "least-cost": _least_cost,
    "least-latency": _least_latency,
    "least-busy": _least_busy,
    "hash": _hash,
}
MEDIAN = 0.5
# What `providerOptions.gateway.sort` means.
SORTS: Mapping[str, Strategy] = {"cost": "least-cost", "latency": "least-latency"}


def ordered(strategy: Strategy, routes: Sequence[Route], state_of: StateOf, key: str) -> list[Route]:
    """The routes by priority, then by the strategy; equal ones by chance. `key`: the caller, for "hash"."""
    rank = STRATEGIES[strategy]
    return sorted(routes, key=lambda route: (route.priority, rank(route, state_of(route), key), random.random()))
