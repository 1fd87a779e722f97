"""Deliveries of an endpoint, as its owner sees them, and the replay of those that were given up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, update

from engine.storage.database import Database
from engine.webhooks.endpoints import get_endpoint
from models.base import db_now
from models.errors import Conflict, InvalidInput, WebhookNotFound
from models.webhook import DeliveryState, WebhookDelivery, WebhookEvent

EVENT_ID = re.compile(r"evt_[0-9a-f]{32}\Z")
_COLUMNS = (
    *WebhookDelivery.__table__.columns,
    WebhookEvent.type,
    WebhookEvent.subject_id,
    WebhookEvent.created_at,
)


async def list_deliveries(
    database: Database, project: str, endpoint_id: str, *, limit: int, after_id: str | None, state: str | None
) -> tuple[Sequence[Row[Any]], bool]:
    """A page of an endpoint's deliveries, by the id of the event, newest first; and whether there are more.

    Raises WebhookNotFound, or InvalidInput for an `after_id` that is no event's.
    """
    await get_endpoint(database, project, endpoint_id)
    statement = _SELECT.where(WebhookDelivery.endpoint_id == endpoint_id)
    if after_id is not None:
        if not EVENT_ID.match(after_id):
            raise InvalidInput(
                "Invalid 'after': not the id of an event. Send the last_id of the page before.",
                param="after",
                code="invalid_value",
            )
        statement = statement.where(WebhookDelivery.event_id < after_id)
    if state is not None:
        statement = statement.where(WebhookDelivery.state == state)
    async with database.read() as connection:
        rows = (await connection.execute(statement.order_by(WebhookDelivery.event_id.desc()).limit(limit + 1))).all()
    return rows[:limit], len(rows) > limit


async def replay(database: Database, project: str, endpoint_id: str, event_id: str) -> Row[Any]:
    """Send an event again under its id, on the schedule of a new one. For a pending delivery: now.

    Raises WebhookNotFound, or Conflict while the endpoint is disabled.
    """
    endpoint = await get_endpoint(database, project, endpoint_id)
    if endpoint.disabled_at is not None:
        raise Conflict(
            "The endpoint is disabled: send an update of it (POST with its url), which enables it, and replay then."
        )
    this = (WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.event_id == event_id)
    if EVENT_ID.match(event_id):
        async with database.write() as connection:
            await connection.execute(
                update(WebhookDelivery)
                .where(*this, WebhookDelivery.state != DeliveryState.PENDING)
                .values(attempts=0, delivered_at=None)
            )
            await connection.execute(
                update(WebhookDelivery).where(*this).values(state=DeliveryState.PENDING, next_attempt_at=db_now())
            )
            row = (await connection.execute(_SELECT.where(*this))).one_or_none()
        if row is not None:
            return row
    raise WebhookNotFound(
        "No delivery of an event with this id to this endpoint. GET /v1/webhook_endpoints/{id}/deliveries lists them.",
        param="event_id",
    )


_SELECT = select(*_COLUMNS).join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
