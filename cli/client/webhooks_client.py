"""The webhook endpoints of a server and what is sent to them, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from cli.client.responses import decode
from cli.client.session import Session, without_none

WEBHOOKS = "/v1/webhook_endpoints"
EVENT_TYPES = "/v1/webhook_event_types"
PAGE = 100


class Webhook(msgspec.Struct):
    """An endpoint. `signing_secret`: in the answers that create it and rotate its secret only."""

    id: str
    url: str = ""
    name: str = ""
    event_types: list[str] = []
    signing_secret: str | None = None
    disabled_at: float | None = None
    disabled_reason: str | None = None


class WebhookPage(msgspec.Struct):
    """A page of endpoints."""

    data: list[Webhook]
    has_more: bool = False


class Delivery(msgspec.Struct):
    """One event on its way to one endpoint. `id`: of the event."""

    id: str
    state: str
    type: str = ""
    attempts: int = 0
    next_attempt_at: float | None = None
    last_status: int | None = None
    last_error: str | None = None


class DeliveryPage(msgspec.Struct):
    """A page of deliveries."""

    data: list[Delivery]
    has_more: bool = False
    last_id: str | None = None


class TrialDelivery(msgspec.Struct):
    """What the receiver answered to a test event."""

    event_type: str = ""
    status_code: int | None = None
    success: bool = False


class EventTypePage(msgspec.Struct):
    """All types of events."""

    data: list[str]


class Webhooks:
    """The endpoints of the key's project."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, url: str, name: str, event_types: list[str]) -> Webhook:
        """A new endpoint, with its secret."""
        return self._send(WEBHOOKS, {"url": url, "name": name, "event_types": event_types})

    def page(self, *, limit: int) -> WebhookPage:
        """The newest endpoints."""
        return decode(self._session.get(WEBHOOKS, {"limit": limit}), WebhookPage)

    def event_types(self) -> list[str]:
        """What can be sent."""
        return decode(self._session.get(EVENT_TYPES), EventTypePage).data

    def rotate(self, endpoint_id: str, *, keep_old: bool) -> Webhook:
        """A new secret. `keep_old`: for a day, deliveries are signed with the old one too."""
        return self._send(f"{WEBHOOKS}/{endpoint_id}/rotate_secret", {"keep_old_secret_active_for_24_hours": keep_old})

    def test(self, endpoint_id: str, event_type: str) -> TrialDelivery:
        """Send an event that has not happened."""
        reply = self._session.once("POST", f"{WEBHOOKS}/{endpoint_id}/test", {"event_type": event_type})
        return decode(reply, TrialDelivery)

    def delete(self, endpoint_id: str) -> None:
        """Remove an endpoint."""
        self._session.once("DELETE", f"{WEBHOOKS}/{endpoint_id}")

    def deliveries(self, endpoint_id: str, *, state: str | None, limit: int) -> DeliveryPage:
        """The newest deliveries to an endpoint."""
        return self._deliveries(endpoint_id, {"state": state, "limit": limit})

    def all_deliveries(self, endpoint_id: str, *, state: str) -> Iterator[Delivery]:
        """Every delivery in a state, page by page."""
        after: str | None = None
        while True:
            page = self._deliveries(endpoint_id, {"state": state, "limit": PAGE, "after": after})
            yield from page.data
            if not page.has_more or not page.data:
                return
            after = page.last_id or page.data[-1].id

    def replay(self, endpoint_id: str, event_id: str) -> None:
        """Send an event once more."""
        self._session.once("POST", f"{WEBHOOKS}/{endpoint_id}/deliveries/{event_id}/replay")

    def _deliveries(self, endpoint_id: str, query: dict[str, Any]) -> DeliveryPage:
        return decode(self._session.get(f"{WEBHOOKS}/{endpoint_id}/deliveries", query), DeliveryPage)

    def _send(self, path: str, body: dict[str, Any]) -> Webhook:
        return decode(self._session.once("POST", path, without_none(body)), Webhook)
