"""Publishes notifications to the broker: messages that say that there is work. Tasks are known by name only.

The database is the truth: a message that is lost, doubled or late costs time, nothing else. So an outage of the broker
is logged and counted, and the next dispatch notifies again.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from amqp.exceptions import AMQPError, MessageNacked
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.pools import producers
from redis.exceptions import RedisError

from engine.config.settings import VISIBILITY_TIMEOUT_S
from engine.connections import urls
from engine.connections.broker_faults import names_of, unavailable
from engine.observability import failpoints
from engine.observability.telemetry import NOTIFY_FAILURES
from engine.process.background import LOG_EVERY_S
from models.errors import BrokerUnavailable, EmbedmillError

log = logging.getLogger("embedmill.queue")

RUN_SHARD = "embedmill.run_shard"
DEFAULT_NAMESPACE = "embedmill"
BULK_QUEUE = f"{DEFAULT_NAMESPACE}.bulk"
SOCKET_TIMEOUT_S = 5.0
BROKER_BACKOFF_S = 3.0
PUBLISH_TIMEOUT_S = 4.0
PROBE_TIMEOUT_S = 6.0  # longer than a connection takes to fail
# What kombu, py-amqp and redis-py raise because of a broker (kombu 5.7, py-amqp 5.4, redis-py 8.1): they have no common
# root. kombu itself counts KeyError and AttributeError among the errors of a connection that was just lost, and raises
# RuntimeError for a closed pool; struct.error and ValueError come of an answer in another protocol.
BROKER_ERRORS = (
    KombuError,
    AMQPError,
    MessageNacked,
    RedisError,
    OSError,
    KeyError,
    AttributeError,
    RuntimeError,
    ValueError,
    struct.error,
)


def bulk_queue(namespace: str) -> str:
    """The queue of an installation; two on one broker have different names."""
    return f"{namespace}.bulk"


def declared_queue(url: str, namespace: str) -> Queue:
    """The queue as every process declares it: a quorum queue on RabbitMQ."""
    arguments = {"x-queue-type": "quorum"} if url.startswith("amqp") else None
    return Queue(bulk_queue(namespace), queue_arguments=arguments)  # type: ignore[no-untyped-call]


def key_prefix(namespace: str) -> str:
    """Of an installation's keys in Redis; none for the usual name: releases that had no names share those keys."""
    return "" if namespace == DEFAULT_NAMESPACE else f"{namespace}:"


def broker_options(url: str, namespace: str = DEFAULT_NAMESPACE) -> dict[str, Any]:
    """Transport options for publishing and consuming. Without socket timeouts a half-open connection hangs for ever."""
    if not url.startswith("amqp"):
        return {
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10.0,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
            "socket_keepalive": True,
            "retry_on_timeout": True,
            "health_check_interval": 10,
            "global_keyprefix": f"{namespace}:",
        }
    return {"confirm_publish": True, "connect_timeout": SOCKET_TIMEOUT_S}


class Notifier:
    """Publishes notifications from a thread of its own, because publishing by Celery blocks."""

    def __init__(self, broker_url: str, namespace: str = DEFAULT_NAMESPACE) -> None:
        self._url = broker_url
        self._namespace = namespace
        self._lock = threading.Lock()
        self._celery: Celery | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._probing: ThreadPoolExecutor | None = None
        self._away_until = 0.0
        self._logged, self._log_at = "", 0.0

    async def notify(self, messages: int) -> bool:
        """Publish what is missing until `messages` wait in the queue. Returns False when the broker does not do it."""
        if not messages or not self._url:
            return not messages
        if time.monotonic() < self._away_until:
            return False
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="notifier")
        publishing = asyncio.get_running_loop().run_in_executor(self._thread, self._top_up, messages)
        # The transport needs twenty seconds to notice a frozen broker: no caller waits for that. Notifications that are
        # published after all are only early.
        if not (await asyncio.wait({publishing}, timeout=PUBLISH_TIMEOUT_S))[0]:
            self._away_until = time.monotonic() + BROKER_BACKOFF_S
            return False
        return publishing.result()

    async def reachable(self) -> bool:
        """True when the broker answers now."""
        return await self.waiting() is not None

    async def waiting(self) -> int | None:
        """The number of messages that wait in the queue; None when the broker does not answer, or there is none."""
        if not self._url:
            return None
        if self._probing is None:  # of its own: a silent broker blocks it for ten seconds
            self._probing = ThreadPoolExecutor(1, thread_name_prefix="broker-probe")
        counting = asyncio.get_running_loop().run_in_executor(self._probing, self._count_waiting)
        await asyncio.wait({counting}, timeout=PROBE_TIMEOUT_S)
        return counting.result() if counting.done() else None

    def _count_waiting(self) -> int | None:
        try:
            # A connection of its own: a pooled one may be half-open, as that of a worker that receives nothing may be.
            with self._app().connection_for_write(connect_timeout=2.0) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=3.0)
                return self._declare(connection.default_channel)
        except (EmbedmillError, *BROKER_ERRORS):  # also when its URL cannot be used
            return None

    def _declare(self, channel: Any) -> int:
        """Declare the queue. Returns the number of messages that wait in it."""
        queue = declared_queue(self._url, self._namespace)(channel)
        return int(queue.queue_declare().message_count)  # type: ignore[no-untyped-call]

    def _top_up(self, messages: int) -> bool:
        app, missing = self._app(), messages
        try:
            with producers[app.connection_for_write()].acquire(block=True, timeout=SOCKET_TIMEOUT_S) as producer:
                missing -= self._declare(producer.channel)
                for _ in range(missing):
                    app.send_task(RUN_SHARD, queue=bulk_queue(self._namespace), producer=producer, retry=False)
            failpoints.hit("after_publish")
            return True
        except (EmbedmillError, *BROKER_ERRORS) as error:
            self._away_until = time.monotonic() + BROKER_BACKOFF_S
            NOTIFY_FAILURES.inc(missing)
            self._log(missing, unavailable(error, names_of(self._url)))
            return False

    def _log(self, count: int, error: BrokerUnavailable) -> None:
        """A line for each new cause, and one in a while for the same."""
        now = time.monotonic()
        if error.message == self._logged and now < self._log_at:
            return
        self._logged, self._log_at = error.message, now + LOG_EVERY_S
        advice = f"; {error.advice}" if error.advice else ""
        log.warning("the broker did not take %d messages: %s%s", count, error.message, advice)

    def _app(self) -> Celery:
        with self._lock:
            if self._celery is None:
                app = Celery("embedmill-notifier", set_as_current=False)
                app.conf.update(
                    **urls.redis_or_broker(self._url, "EMBEDMILL_BROKER_URL").celery_options(),
                    task_ignore_result=True,
                    task_create_missing_queues=True,
                    # As the worker declares it: RabbitMQ refuses a second declaration with another type.
                    task_create_missing_queue_type="quorum" if self._url.startswith("amqp") else None,
                    # One attempt: the caller waits for it, and the next dispatch notifies again.
                    broker_transport_options=broker_options(self._url, self._namespace)
                    | {"max_retries": 1, "interval_start": 0},
                    broker_connection_timeout=SOCKET_TIMEOUT_S,
                    broker_connection_retry=False,
                    broker_pool_limit=1,
                    task_publish_retry=False,
                )
                self._celery = app
            return self._celery

    def close(self) -> None:
        """Close the connection and end the threads."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        if self._probing is not None:
            self._probing.shutdown(wait=False, cancel_futures=True)
        if self._celery is not None:
            self._celery.close()
