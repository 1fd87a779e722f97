"""Metrics of webhooks."""

from __future__ import annotations

from prometheus_client import Counter

from engine.observability.telemetry import REGISTRY

WEBHOOK_DELIVERIES = Counter(
    "embedmill_webhook_deliveries_total",
    "Attempts to deliver an event, by outcome: delivered, retried (later), dead, disabled (by a 410)",
    ["outcome"],
    registry=REGISTRY,
)
