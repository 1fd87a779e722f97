"""Purge: removes old events with their deliveries, in small steps."""

from __future__ import annotations

import time

from sqlalchemy import ColumnElement, delete, select

from engine.config.settings import Settings
from engine.storage.database import Database
from models.base import db_now
from models.webhook import WebhookEvent

STEP_EVENTS = 500
ROUND_S = 0.5


def expired_event(settings: Settings) -> ColumnElement[bool]:
    """True for an event that is older than the retention of events."""
    return WebhookEvent.created_at < db_now() - settings.webhook_retention_days * 86_400.0


async def purge_events(database: Database, settings: Settings) -> None:
    """Remove expired events for ROUND_S. Raises StorageUnavailable."""
    until = time.monotonic() + ROUND_S
    oldest = select(WebhookEvent.id).where(expired_event(settings)).order_by(WebhookEvent.created_at).limit(STEP_EVENTS)
    while time.monotonic() < until:
        async with database.read() as connection:
            ids = (await connection.execute(oldest)).scalars().all()
        if not ids:
            return
        async with database.write() as connection:
            await connection.execute(delete(WebhookEvent).where(WebhookEvent.id.in_(ids)))
