"""Celery's consumer, restricted to our own messages and without RabbitMQ queues for delayed delivery.

No message of ours has a delay; Celery would declare 28 queues for them.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown

from engine.connections.broker_faults import names_of, unavailable
from engine.process.background import ErrorLog
from workers.message_check import dropped, fault_of

log = logging.getLogger("embedmill.queue")

REFUSED_PAUSE_S = 1.0
# Celery's own pauses between two tries grow to 30 s: a broker that was away for long would be heard as much later.
FIRST_PAUSE_S, PAUSE_STEP_S, LAST_PAUSE_S = 1.0, 1.0, 5.0
SIGNAL_POLL_S = 0.25
DELAYS = "celery.worker.consumer.delayed_delivery:DelayedDelivery"


class Consumer(CeleryConsumer):  # type: ignore[misc]
    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]
        default_steps = tuple(step for step in CeleryConsumer.Blueprint.default_steps if step != DELAYS)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._failures = ErrorLog("connecting to the broker")
        self._refusals = 0  # in a row, of a broker that answers

    def ensure_connected(self, conn: Any) -> Any:
        """The connection, once the broker takes it; until then one line in a while says why it does not."""
        connected = conn.ensure_connection(
            lambda error, _: self._failed(error),
            None,
            interval_start=FIRST_PAUSE_S,
            interval_step=PAUSE_STEP_S,
            interval_max=LAST_PAUSE_S,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        return connected

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """The broker answers and refuses: a wrong password, another virtual host. It is asked ever more slowly."""
        self._failed(exc)
        self._refusals += 1
        _pause(min(LAST_PAUSE_S, FIRST_PAUSE_S + PAUSE_STEP_S * self._refusals))

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Celery reconnects at once: a broker that answers and refuses would be asked, and the log filled, for ever."""
        with warnings.catch_warnings():  # of a coming change of a setting that we set
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        if not isinstance(exc, OSError):
            # Without a look at the stop signal: the connection must be opened again before the worker can end well.
            time.sleep(REFUSED_PAUSE_S)

    def on_ready(self) -> None:
        super().on_ready()
        self._refusals = 0
        self._failures.succeeded()

    def create_task_handler(self, *arguments: Any, **keywords: Any) -> Callable[[Any], Any]:
        handle: Callable[[Any], Any] = super().create_task_handler(*arguments, **keywords)

        def handle_ours(message: Any) -> Any:
            fault = fault_of(message)
            if fault is None:
                return handle(message)
            dropped.note(fault)
            return message.ack_log_error(log, self.connection_errors)

        return handle_ours

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Celery writes the message and a traceback into the log, for each."""
        dropped.note("it cannot be read")
        message.ack_log_error(log, self.connection_errors)

    def _failed(self, error: BaseException) -> None:
        self._failures.failed(unavailable(error, names_of(str(self.app.conf.broker_url))))


def _pause(seconds: float) -> None:
    """Wait, and end the worker meanwhile should it be told to stop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        maybe_shutdown()
        time.sleep(SIGNAL_POLL_S)
