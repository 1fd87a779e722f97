"""The outbox: an event and its deliveries are inserted in the transaction that makes the event happen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from models.base import db_now, new_id
from models.webhook import DeliveryState, EventType, WebhookDelivery, WebhookEndpoint, WebhookEvent


async def record_event(
    connection: AsyncConnection,
    event_type: EventType,
    *,
    project: str,
    job_id: str,
    subject_id: str,
    data: dict[str, Any] | None = None,
) -> str | None:
    """Insert an event of a job, or of its batch, for the endpoints that subscribe to it. Returns its id; None: nobody.

    `subject_id`: the batch or job that the payload names. `data`: more of the payload.
    """
    subscribers = await _subscribers(connection, event_type, project, job_id)
    if not subscribers:
        return None
    event_id = new_id("evt")
    await insert_event(
        connection, event_id, event_type, project=project, subject_id=subject_id, data=data, subscribers=subscribers
    )
    return event_id


async def insert_event(
    connection: AsyncConnection,
    event_id: str,
    event_type: EventType,
    *,
    project: str,
    subject_id: str,
    data: dict[str, Any] | None,
    subscribers: Sequence[str],
) -> None:
    """Insert an event and its deliveries to these endpoints, which are due at once."""
    await connection.execute(
        insert(WebhookEvent).values(
            id=event_id,
            project=project,
            type=event_type,
            subject_id=subject_id,
            data={"id": subject_id, **(data or {})},
            created_at=db_now(),
        )
    )
    # Selected under a lock: an endpoint that is deleted meanwhile must not undo what the transaction is about.
    endpoints = select(
        literal(event_id), WebhookEndpoint.id, literal(DeliveryState.PENDING.value), literal(0), db_now()
    ).where(WebhookEndpoint.id.in_(subscribers))
    columns = ["event_id", "endpoint_id", "state", "attempts", "next_attempt_at"]
    await connection.execute(
        insert(WebhookDelivery).from_select(columns, endpoints.with_for_update(read=True, key_share=True))
    )


def event_id_of(subject_id: str, at: float, what: str) -> str:
    """The id of an event that can happen once: the same for the same subject, instant (unix seconds) and words."""
    digest = hashlib.sha256(f"{subject_id}/{at!r}/{what}".encode()).hexdigest()
    return f"evt_{int(at * 1000):012x}{digest[:20]}"


async def _subscribers(connection: AsyncConnection, event_type: EventType, project: str, job_id: str) -> list[str]:
    columns = select(WebhookEndpoint.id, WebhookEndpoint.event_types).where(WebhookEndpoint.disabled_at.is_(None))
    # Two look-ups in two indexes: a project may have many endpoints of single jobs.
    endpoints = await connection.execute(
        union_all(
            columns.where(WebhookEndpoint.project == project, WebhookEndpoint.job_id.is_(None)),
            columns.where(WebhookEndpoint.job_id == job_id),
        )
    )
    return [endpoint.id for endpoint in endpoints if event_type in endpoint.event_types]
