"""Claims of due deliveries, and what becomes of each attempt. SQL only; any number of schedulers may run it.

A claim is a lease: a scheduler that is killed between the send and the mark leaves it, and once it has run out the same
event is sent again under the same id, by which a receiver knows it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, or_, select, update

from engine.config.settings import Settings
from engine.observability.webhook_metrics import WEBHOOK_DELIVERIES
from engine.storage.database import Database
from engine.webhooks.endpoints import active_secrets
from engine.webhooks.render import event_body
from engine.webhooks.schedule import next_delay_s
from engine.webhooks.sender import SendResult
from models.base import db_now
from models.webhook import DeliveryState, WebhookDelivery, WebhookEndpoint, WebhookEvent

GONE = 410
DISABLED = "the endpoint was disabled: its receiver answered 410; an update of the endpoint enables it again"


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A delivery that may be claimed."""

    event_id: str
    endpoint_id: str
    project: str


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery under a lease: what is sent where. `attempts`: this one included; it is the fence of the claim."""

    event_id: str
    endpoint_id: str
    attempts: int
    url: str
    secrets: Sequence[str]
    body: bytes


_IS_FREE = or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < db_now())
_IS_DUE = and_(
    WebhookDelivery.state == DeliveryState.PENDING.value, WebhookDelivery.next_attempt_at <= db_now(), _IS_FREE
)


async def due_deliveries(
    database: Database, *, busy_endpoints: Collection[str], busy_projects: Collection[str], limit: int
) -> Sequence[DueDelivery]:
    """Due deliveries, the longest due first, without those of endpoints and projects that are busy."""
    due = (
        select(WebhookDelivery.event_id, WebhookDelivery.endpoint_id, WebhookEndpoint.project)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(
            _IS_DUE,
            WebhookEndpoint.disabled_at.is_(None),
            WebhookEndpoint.id.not_in(busy_endpoints),
            WebhookEndpoint.project.not_in(busy_projects),
        )
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(limit)
    )
    async with database.read() as connection:
        return [DueDelivery(*row) for row in await connection.execute(due)]


async def claim(database: Database, settings: Settings, due: DueDelivery) -> ClaimedDelivery | None:
    """Lease a delivery. None: another scheduler has it, or it is no longer due."""
    # The receiver's time, and the time to mark what became of it.
    lease_s = settings.webhook_timeout_s + settings.lease_s
    is_this = and_(WebhookDelivery.event_id == due.event_id, WebhookDelivery.endpoint_id == due.endpoint_id)
    async with database.write() as connection:
        claimed = await connection.execute(
            update(WebhookDelivery)
            .where(is_this, _IS_DUE)
            .values(lease_until=db_now() + lease_s, attempts=WebhookDelivery.attempts + 1, last_attempt_at=db_now())
            .returning(WebhookDelivery.attempts)
        )
        attempts = claimed.scalar_one_or_none()
        if attempts is None:
            return None
        endpoint_and_event = (
            select(*WebhookEndpoint.__table__.columns, WebhookEvent.type, WebhookEvent.data, db_now().label("now"))
            .add_columns(WebhookEvent.created_at.label("happened_at"))
            .join(WebhookEvent, WebhookEvent.id == due.event_id)
            .where(WebhookEndpoint.id == due.endpoint_id)
        )
        row = (await connection.execute(endpoint_and_event)).one()
    body = event_body(due.event_id, row.type, row.happened_at, row.data)
    return ClaimedDelivery(due.event_id, due.endpoint_id, attempts, row.url, active_secrets(row, row.now), body)


async def finish(database: Database, delivery: ClaimedDelivery, result: SendResult) -> DeliveryState:
    """Mark what became of an attempt: delivered, to be tried again, or dead. Returns the state."""
    delay_s = next_delay_s(delivery.attempts, result.retry_after_s)
    is_gone = result.status == GONE
    if result.is_delivered:
        state = DeliveryState.DELIVERED
    else:
        state = DeliveryState.DEAD if is_gone or delay_s is None else DeliveryState.PENDING
    is_this = and_(WebhookDelivery.event_id == delivery.event_id, WebhookDelivery.endpoint_id == delivery.endpoint_id)
    # A receipt counts whoever has the lease by now; a failure only while this claim is the last.
    is_current = (
        WebhookDelivery.state != DeliveryState.DELIVERED
        if result.is_delivered
        else and_(WebhookDelivery.state == DeliveryState.PENDING, WebhookDelivery.attempts == delivery.attempts)
    )
    async with database.write() as connection:
        if is_gone:
            # First, so that several such answers wait for the endpoint, and not for each other's deliveries.
            await connection.execute(
                update(WebhookEndpoint)
                .where(WebhookEndpoint.id == delivery.endpoint_id)
                .values(
                    disabled_at=func.coalesce(WebhookEndpoint.disabled_at, db_now()),
                    disabled_reason=func.coalesce(WebhookEndpoint.disabled_reason, DISABLED),
                )
            )
        await connection.execute(
            update(WebhookDelivery)
            .where(is_this, is_current)
            .values(
                state=state,
                lease_until=None,
                next_attempt_at=db_now() + delay_s if state is DeliveryState.PENDING else None,
                delivered_at=db_now() if result.is_delivered else None,
                last_status=result.status,
                last_error=result.error,
            )
        )
        if is_gone:
            await connection.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.endpoint_id == delivery.endpoint_id, WebhookDelivery.state == "pending")
                .values(state=DeliveryState.DEAD, next_attempt_at=None, last_error=DISABLED)
            )
    outcome = "retried" if state is DeliveryState.PENDING else str(state)
    WEBHOOK_DELIVERIES.labels("disabled" if is_gone else outcome).inc()
    return state
