"""Delivery: sends what is due, many receivers at a time. One loop in each scheduler."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from engine.config.settings import Settings
from engine.observability import failpoints
from engine.process.background import ErrorLog, surviving
from engine.storage.database import Database
from engine.webhooks import attempts
from engine.webhooks.attempts import ClaimedDelivery, DueDelivery
from engine.webhooks.sender import SendResult, WebhookSender
from models.webhook import DeliveryState

log = logging.getLogger("embedmill.webhooks")

# Deliveries under way in one process. One receiver, or one project, that answers slowly leaves room to the others.
MAX_SENDING = 256
MAX_SENDING_PER_PROJECT = 16
MAX_SENDING_PER_ENDPOINT = 4
DUE_ROWS = 64  # that one query reads
# An attempt that a fault of ours ended counts too: otherwise it would be made for ever.
FAULT = SendResult(error="the event could not be sent: a fault of this server, which its log has")


class WebhookDeliveries:
    """The deliveries under way in one process. Call `send_due` periodically, and close it."""

    def __init__(self, database: Database, settings: Settings, sender: WebhookSender | None = None) -> None:
        self._database = database
        self._settings = settings
        self._sender = sender or WebhookSender(settings)
        self._sending: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._by_endpoint: Counter[str] = Counter()
        self._by_project: Counter[str] = Counter()
        self._errors = ErrorLog("the delivery of a webhook")

    @property
    def sending(self) -> int:
        """How many are under way."""
        return len(self._sending)

    async def send_due(self) -> None:
        """Begin to send all that is due, as far as there is room; the sends go on. Raises StorageUnavailable."""
        while len(self._sending) < MAX_SENDING:
            due = await attempts.due_deliveries(
                self._database,
                busy_endpoints=[key for key, n in self._by_endpoint.items() if n >= MAX_SENDING_PER_ENDPOINT],
                busy_projects=[key for key, n in self._by_project.items() if n >= MAX_SENDING_PER_PROJECT],
                limit=DUE_ROWS,
            )
            begun = 0
            for delivery in filter(self._has_room, due):
                claimed = await attempts.claim(self._database, self._settings, delivery)
                if claimed is not None:
                    self._begin(delivery, claimed)
                    begun += 1
            if not begun:
                return

    def _has_room(self, due: DueDelivery) -> bool:
        return (
            (due.event_id, due.endpoint_id) not in self._sending
            and len(self._sending) < MAX_SENDING
            and self._by_endpoint[due.endpoint_id] < MAX_SENDING_PER_ENDPOINT
            and self._by_project[due.project] < MAX_SENDING_PER_PROJECT
        )

    def _begin(self, due: DueDelivery, claimed: ClaimedDelivery) -> None:
        key = (due.event_id, due.endpoint_id)
        self._by_endpoint[due.endpoint_id] += 1
        self._by_project[due.project] += 1

        def forget(task: asyncio.Task[None]) -> None:
            del self._sending[key]
            for counter, name in ((self._by_endpoint, due.endpoint_id), (self._by_project, due.project)):
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]

        self._sending[key] = task = asyncio.create_task(self._send(claimed))
        task.add_done_callback(forget)

    async def _send(self, delivery: ClaimedDelivery) -> None:
        # An attempt whose end could not be marked is made again once its lease has run out.
        with self._errors.round():
            result = FAULT
            with surviving(lambda error: log.error("a webhook could not be sent", exc_info=error)):
                result = await self._sender.send(
                    delivery.url, delivery.secrets, event_id=delivery.event_id, body=delivery.body
                )
            failpoints.hit("after_webhook_send")
            state = await attempts.finish(self._database, delivery, result)
            if state is DeliveryState.DEAD:
                log.warning(
                    "a webhook was given up: %s",
                    result.error,
                    extra={"event_id": delivery.event_id, "endpoint_id": delivery.endpoint_id},
                )

    async def close(self, *, timeout_s: float = 0.0) -> None:
        """Wait for the sends under way, then end them: their events are sent again by another scheduler."""
        tasks = list(self._sending.values())
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sender.close()
