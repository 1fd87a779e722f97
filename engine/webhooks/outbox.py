"""The outbox: an event and its deliveries are inserted in the transaction that makes the event happen."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, or_, select
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
    endpoints = (
        await connection.execute(
            select(WebhookEndpoint.id, WebhookEndpoint.event_types).where(
                WebhookEndpoint.project == project,
                or_(WebhookEndpoint.job_id.is_(None), WebhookEndpoint.job_id == job_id),
                WebhookEndpoint.disabled_at.is_(None),
            )
        )
    ).all()
    subscribers = [endpoint.id for endpoint in endpoints if event_type in endpoint.event_types]
    if not subscribers:
        return None
    event_id = new_id("evt")
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
    await connection.execute(
        insert(WebhookDelivery),
        [
            {
                "event_id": event_id,
                "endpoint_id": endpoint_id,
                "state": DeliveryState.PENDING,
                "attempts": 0,
                "next_attempt_at": 0.0,
            }
            for endpoint_id in subscribers
        ],
    )
    return event_id
