"""Endpoints and deliveries as the objects of the API."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from engine.webhooks.signature import hint_of


def endpoint_object(row: Row[Any], *, with_secret: bool = False) -> dict[str, Any]:
    """The endpoint; its secret only where it is new."""
    body = {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": int(row.created_at),
        "updated_at": int(row.updated_at),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": hint_of(row.secret),
        "disabled_at": _seconds(row.disabled_at),
        "disabled_reason": row.disabled_reason,
    }
    return body | {"signing_secret": row.secret} if with_secret else body


def delivery_object(row: Row[Any]) -> dict[str, Any]:
    """The delivery of one event to one endpoint. What the receiver answered, beyond its status, is not kept."""
    return {
        "id": row.event_id,
        "object": "webhook_delivery",
        "type": row.type,
        "subject_id": row.subject_id,
        "state": row.state,
        "attempts": row.attempts,
        "created_at": int(row.created_at),
        "next_attempt_at": _seconds(row.next_attempt_at),
        "last_attempt_at": _seconds(row.last_attempt_at),
        "delivered_at": _seconds(row.delivered_at),
        "last_status": row.last_status,
        "last_error": row.last_error,
    }


def _seconds(instant: float | None) -> int | None:
    return None if instant is None else int(instant)
