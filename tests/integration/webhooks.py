"""What tests of webhooks share: endpoints, deliveries, and time that passes."""

from __future__ import annotations

import ssl
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import select, update

from engine.webhooks.delivery import WebhookDeliveries
from engine.webhooks.endpoints import create_endpoint
from engine.webhooks.resolver import Resolver
from engine.webhooks.sender import WebhookSender
from engine.webhooks.targets import CheckedUrl, TargetPolicy
from models.base import db_now
from models.webhook import EventType, WebhookDelivery, WebhookEvent
from tests.integration.store import Store
from tests.waiting import until

LOOPBACK = "127.0.0.0/8"


async def subscribe(
    store: Store, url: str, *, project: str = "p", events: Collection[EventType] = tuple(EventType)
) -> Any:
    """An endpoint of the project; its URL is checked at each delivery alone."""
    return await create_endpoint(
        store.database, project, name="n", url=CheckedUrl(url), event_types=list(events), limit=1000
    )


def deliveries_of(
    store: Store, *, resolver: Resolver | None = None, tls: ssl.SSLContext | None = None
) -> WebhookDeliveries:
    """The deliveries of one scheduler, which may reach loopback. Close them."""
    settings = store.runtime.settings
    policy = TargetPolicy(settings.webhook_allowed_networks, resolver=resolver)
    return WebhookDeliveries(store.database, settings, WebhookSender(settings, policy=policy, tls=tls))


async def events_of(store: Store, subject_id: str) -> Sequence[Any]:
    """The events of a job or batch, the oldest first."""
    columns = select(*WebhookEvent.__table__.columns).where(WebhookEvent.subject_id == subject_id)
    async with store.database.read() as connection:
        return (await connection.execute(columns.order_by(WebhookEvent.created_at, WebhookEvent.id))).all()


async def all_deliveries(store: Store, endpoint_id: str | None = None) -> Sequence[Any]:
    columns = select(*WebhookDelivery.__table__.columns, db_now().label("now"))
    if endpoint_id is not None:
        columns = columns.where(WebhookDelivery.endpoint_id == endpoint_id)
    async with store.database.read() as connection:
        return (await connection.execute(columns.order_by(WebhookDelivery.event_id))).all()


async def let_time_pass(store: Store, *, leases: bool = False) -> None:
    """Every delivery that waits is due; with `leases`, those of schedulers that were killed too."""
    values: dict[str, Any] = {"next_attempt_at": db_now() - 1.0}
    if leases:
        values["lease_until"] = db_now() - 1.0
    async with store.database.write() as connection:
        await connection.execute(update(WebhookDelivery).where(WebhookDelivery.state == "pending").values(values))


async def send_all(deliveries: WebhookDeliveries) -> None:
    """Send what is due now, and wait until each attempt has its end."""
    await deliveries.send_due()
    await until(lambda: not deliveries.sending, what="the end of all sends")
