"""Metrics of the calls to one route."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter

from engine.observability.telemetry import (
    AMBIGUOUS_CALLS,
    INPUTS,
    TOKENS,
    UPSTREAM_CALLS,
    UPSTREAM_SECONDS,
    WASTED_TOKENS,
)
from models.embedding import Call

CUT_OFF = "cut_off"  # by a caller who hung up, a cancellation or a time limit


class RouteMetrics:
    """Children of the labelled metrics, looked up once for each route instead of for each call."""

    def __init__(self, provider: str, model: str) -> None:
        self._labels = (provider, model)
        self._ok = UPSTREAM_CALLS.labels(provider, model, "ok")
        self._seconds = UPSTREAM_SECONDS.labels(provider, model)

    def succeeded(self, seconds: float) -> None:
        """Count a successful call."""
        self._ok.inc()
        self._seconds.observe(seconds)

    def failed(self, call: Call) -> None:
        """Count a failed call, by its error, and the tokens that it wasted."""
        UPSTREAM_CALLS.labels(*self._labels, call.error or CUT_OFF).inc()
        if call.ambiguous:
            AMBIGUOUS_CALLS.labels(*self._labels).inc()
        if call.wasted:
            WASTED_TOKENS.labels(*self._labels, call.error or CUT_OFF).inc(call.tokens)


@lru_cache(maxsize=1024)
def delivery_metrics(provider: str, model: str, lane: str) -> tuple[Counter, Counter]:
    """The counters of tokens and of vectors that a route delivers to a lane."""
    return TOKENS.labels(provider, model, lane), INPUTS.labels(lane, "vector")
