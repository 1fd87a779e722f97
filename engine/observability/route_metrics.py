"""Metrics of the calls to one route."""

from __future__ import annotations

from prometheus_client import Counter

from engine.observability.telemetry import (
    AMBIGUOUS_CALLS,
    INPUTS,
    REGISTRY,
    TOKENS,
    UPSTREAM_CALLS,
    UPSTREAM_SECONDS,
    WASTED_TOKENS,
)
from models.embedding import Call

HEDGED_CALLS = Counter(
    "embedmill_hedged_calls_total",
    "Calls of a second route because the first took unusually long, by whether the second's answer came first",
    ["provider", "model", "outcome"],
    registry=REGISTRY,
)
CUT_OFF = "cut_off"  # by a caller who hung up, a cancellation or a time limit


class RouteMetrics:
    """Children of the labelled metrics, looked up once for each route instead of for each call."""

    def __init__(self, provider: str, model: str) -> None:
        self._labels = (provider, model)
        self._ok = UPSTREAM_CALLS.labels(provider, model, "ok")
        self._seconds = UPSTREAM_SECONDS.labels(provider, model)
        self._delivered: dict[str, tuple[Counter, Counter]] = {}  # tokens and vectors, by lane

    def succeeded(self, seconds: float) -> None:
        """Count a successful call."""
        self._ok.inc()
        self._seconds.observe(seconds)

    def delivered(self, lane: str, tokens: int, vectors: int) -> None:
        """Count what a call brought to the callers of a lane."""
        if lane not in self._delivered:
            self._delivered[lane] = TOKENS.labels(*self._labels, lane), INPUTS.labels(lane, "vector")
        tokens_metric, vectors_metric = self._delivered[lane]
        tokens_metric.inc(tokens)
        vectors_metric.inc(vectors)

    def failed(self, call: Call) -> None:
        """Count a failed call, by its error, and the tokens that it wasted."""
        UPSTREAM_CALLS.labels(*self._labels, call.error or CUT_OFF).inc()
        if call.ambiguous:
            AMBIGUOUS_CALLS.labels(*self._labels).inc()
        if call.wasted:
            WASTED_TOKENS.labels(*self._labels, call.error or CUT_OFF).inc(call.tokens)
