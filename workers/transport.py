"""kombu's Redis transport, corrected where it would end a worker or stop it from receiving messages.

A list in Redis may hold anything: whoever can reach it can push into it. kombu reads each item as JSON with the fields
that it wrote itself, and an exception on the way there ends the worker's main process.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

import kombu.transport
from kombu.exceptions import DecodeError
from kombu.transport import redis
from redis.exceptions import RedisError

from engine.connections.broker_faults import unavailable
from engine.connections.connection_faults import REDIS
from engine.process.background import ErrorLog
from workers.message_check import dropped

refusals = ErrorLog("giving unacknowledged messages back")

# Errors of reading foreign bytes as a message: no JSON, no text, no date, nested too deeply.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, DecodeError)


class QoS(redis.QoS):
    """Counts the messages that this worker has not acknowledged, and fetches none beyond its prefetch count.

    kombu keeps one whose acknowledgement did not reach Redis, for ever: once there is one for each slot the worker
    fetches nothing any more, though it is connected. Here such a message gives its place up. Redis still has it as
    unacknowledged and delivers it again later, which does no harm.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        finally:
            self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        finally:
            self._quick_ack(delivery_tag)

    def restore_visible(self, *arguments: Any, **keywords: Any) -> Any:
        """Housekeeping, done again within seconds: a Redis that refuses to write must not end the worker over it."""
        try:
            return super().restore_visible(*arguments, **keywords)  # type: ignore[no-untyped-call]
        except RedisError as error:
            refusals.failed(unavailable(error, REDIS))
            return None


class Channel(redis.Channel):
    """Drops unreadable messages."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except UNREADABLE as error:
            dropped.note(type(error).__name__)
            raise Empty from error


class Transport(redis.Transport):
    """Drops messages without the fields that kombu and Celery need."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if _is_message(message):
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        else:
            dropped.note("no message")


def _is_message(raw: Any) -> bool:
    """True when kombu and Celery find the fields that both read unasked, and nothing of another type there."""
    properties = raw.get("properties") if isinstance(raw, dict) else None
    if not isinstance(properties, dict):
        return False
    delivery = properties.get("delivery_info")
    if not isinstance(delivery, dict) or not {"exchange", "routing_key"} <= delivery.keys():
        return False
    headers = raw.get("headers")
    return (
        isinstance(properties.get("delivery_tag"), str)
        and isinstance(raw.get("body") or "", str)
        and (headers is None or (isinstance(headers, dict) and isinstance(headers.get("task", ""), str)))
    )


def use() -> None:
    """Let redis:// and rediss:// mean this transport, in this process."""
    for scheme in ("redis", "rediss"):
        kombu.transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"
