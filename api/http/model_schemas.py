"""Wire models of `/v1/models/{model}/endpoints`."""

from __future__ import annotations

from typing import Literal

import msgspec


class EndpointPricing(msgspec.Struct):
    """USD for one token."""

    input: str


class EndpointBreaker(msgspec.Struct):
    """`open` while the route is down or quarantined, `half_open` while a health probe is under way."""

    state: Literal["closed", "open", "half_open"]
    reason: str | None
    next_attempt_at: int | None  # of a health probe, unix seconds


class EndpointLatency(msgspec.Struct):
    """Milliseconds that the latest 256 answered calls of the last hour took; null: there were none."""

    p50: float | None
    p95: float | None
    scope: Literal["process"]  # only calls of the API process that answers


class EndpointSuccessRate(msgspec.Struct):
    """The share of calls that were answered, of those whose inputs were not at fault; null: there were none."""

    of_15m: float | None = msgspec.field(name="15m")
    of_1h: float | None = msgspec.field(name="1h")
    of_1d: float | None = msgspec.field(name="1d")
    scope: Literal["process"]  # only calls of the API process that answers


class EndpointQuota(msgspec.Struct):
    """`limit`: as configured, stated or learned. `remaining`: as the provider stated it within the last minute."""

    limit: int | None
    remaining: int | None


class EndpointQuotas(msgspec.Struct):
    """Quotas of the route, of all processes together; null: unknown."""

    requests_per_minute: EndpointQuota
    tokens_per_minute: EndpointQuota


class Endpoint(msgspec.Struct):
    """One route of a model."""

    provider: str  # the account's name
    kind: str
    upstream_model: str
    priority: int
    weight: int
    pricing: EndpointPricing
    status: Literal["up", "down", "quarantined"]
    breaker: EndpointBreaker
    latency_ms: EndpointLatency
    success_rate: EndpointSuccessRate
    quota: EndpointQuotas


class EndpointList(msgspec.Struct):
    """The routes of a model, in the order of the configuration."""

    object: Literal["list"]
    model: str
    space: str
    data: list[Endpoint]
