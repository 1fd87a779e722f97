"""Sample events: what `test` of an endpoint sends at once, without the outbox and its retries."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Row

from engine.webhooks.endpoints import active_secrets
from engine.webhooks.render import event_body
from engine.webhooks.sender import WebhookSender
from models.base import new_id, random_id
from models.errors import RateLimited, RequestError
from models.webhook import EventType

# Tests under way: each holds a request of the API for as long as the receiver takes.
MAX_SENDING_PER_PROJECT = 4


class SampleEvents:
    """Sends sample events from one process."""

    def __init__(self, sender: WebhookSender) -> None:
        self._sender = sender
        self._by_project: Counter[str] = Counter()

    async def send(self, endpoint: Row[Any], event_type: EventType) -> int:
        """Send a signed event with invented ids once. Returns the receiver's status, whatever it is.

        Raises RequestError when there is no answer, and RateLimited while the project's other tests are not done.
        """
        project = endpoint.project
        if self._by_project[project] >= MAX_SENDING_PER_PROJECT:
            raise RateLimited("Too many tests of webhook endpoints are under way: try again when they have ended.")
        self._by_project[project] += 1
        try:
            event_id = new_id("evt")
            subject = random_id("batch" if event_type.startswith("batch.") else "job")
            body = event_body(event_id, event_type, endpoint.now, {"id": subject, "test": True})
            result = await self._sender.send(
                endpoint.url, active_secrets(endpoint, endpoint.now), event_id=event_id, body=body
            )
        finally:
            self._by_project[project] -= 1
            if not self._by_project[project]:
                del self._by_project[project]
        if result.status is None:
            raise RequestError(
                f"The test event was not delivered: {result.error}. Correct the receiver or the endpoint's url, "
                "and test it again.",
                param="url",
                code="webhook_unreachable",
            )
        return result.status
