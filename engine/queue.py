"""The doorbell: messages that say "look at this shard". The engine knows tasks by name only, never their code.

The database is the truth: a message that is lost, doubled or late costs time, nothing else. So a broker that is away is
logged and counted, and the sweep rings again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from kombu.pools import producers

from engine import failpoints
from engine.telemetry import RINGS_FAILED

log = logging.getLogger("embedmill.queue")

RUN_SHARD = "embedmill.run_shard"
BULK_QUEUE = "embedmill.bulk"
SOCKET_TIMEOUT_S = 5.0
AWAY_S = 3.0
RING_S = 4.0


def broker_options(url: str) -> dict[str, Any]:
    """Transport options for publishing and consuming. Without socket timeouts a half-open connection hangs for ever."""
    if url.startswith("redis"):
        return {
            "visibility_timeout": 300,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10.0,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
            "socket_keepalive": True,
            "retry_on_timeout": True,
            "health_check_interval": 10,
            "global_keyprefix": "embedmill:",
        }
    return {"confirm_publish": True, "connect_timeout": SOCKET_TIMEOUT_S}


class Doorbell:
    """Publishes rings from a thread of its own, for Celery's publishing blocks."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url
        self._lock = threading.Lock()
        self._celery: Celery | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._away_until = 0.0

    async def ring(self, shard_ids: Sequence[str]) -> bool:
        """Put a message about each shard into the broker; False when the broker did not take them."""
        if not shard_ids or not self._url:
            return not shard_ids
        if time.monotonic() < self._away_until:
            return False
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="doorbell")
        publishing = asyncio.get_running_loop().run_in_executor(self._thread, self._publish, list(shard_ids))
        # A frozen broker takes the transport twenty seconds to find out: no caller waits for that. Should the rings get
        # out after all, they are only early.
        if not (await asyncio.wait({publishing}, timeout=RING_S))[0]:
            self._away_until = time.monotonic() + AWAY_S
            return False
        return publishing.result()

    async def reachable(self) -> bool:
        """True when the broker answers now."""
        if not self._url:
            return False
        return await asyncio.to_thread(self._connects)

    def _connects(self) -> bool:
        try:
            with self._app().connection_for_write(connect_timeout=2.0) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=3.0)
            return True
        except Exception:  # whatever the transport raises, the answer is no
            return False

    def _publish(self, shard_ids: list[str]) -> bool:
        app = self._app()
        try:
            with producers[app.connection_for_write()].acquire(block=True, timeout=SOCKET_TIMEOUT_S) as producer:
                for shard_id in shard_ids:
                    app.send_task(RUN_SHARD, args=(shard_id,), queue=BULK_QUEUE, producer=producer, retry=False)
            failpoints.hit("after_publish")
            return True
        except Exception as error:  # redis, amqp and kombu raise classes without a common root
            self._away_until = time.monotonic() + AWAY_S
            RINGS_FAILED.inc(len(shard_ids))
            log.warning("the broker did not take %d rings: %s", len(shard_ids), type(error).__name__)
            return False

    def _app(self) -> Celery:
        with self._lock:
            if self._celery is None:
                app = Celery("embedmill-doorbell", broker=self._url, set_as_current=False)
                app.conf.update(
                    task_ignore_result=True,
                    task_create_missing_queues=True,
                    # As the worker declares it: whoever comes second with another type is refused by RabbitMQ.
                    task_create_missing_queue_type="quorum" if self._url.startswith("amqp") else None,
                    # One try: whoever waits for this has better things to do, and the sweep rings again.
                    broker_transport_options=broker_options(self._url) | {"max_retries": 1, "interval_start": 0},
                    broker_connection_timeout=SOCKET_TIMEOUT_S,
                    broker_connection_retry=False,
                    broker_pool_limit=1,
                    task_publish_retry=False,
                )
                self._celery = app
            return self._celery

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        if self._celery is not None:
            self._celery.close()
