"""Celery, and the reason for each setting. It carries doorbells; the database holds what must not be lost."""

from __future__ import annotations

import contextlib
import os
import signal

from billiard import active_children
from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down
from kombu.entity import Queue

from engine.allocator import tune_memory
from engine.queue import BULK_QUEUE, broker_options
from engine.settings import Settings
from engine.telemetry import configure_logging
from models.errors import ConfigError
from workers import loop, transport

settings = Settings.from_environment()
transport.use()

# Order that must hold: upstream deadline < soft < hard < visibility timeout (300 s, engine/queue.py).
HARD_LIMIT_MARGIN_S = 30
# From the parent to its children: finish what is under way, start nothing.
DRAIN = signal.SIGUSR2
SOFT_LIMIT_S = int(settings.shard_budget_s) + 45


def make() -> Celery:
    broker = settings.broker
    if not broker:
        raise ConfigError(
            "no broker: set EMBEDMILL_BROKER_URL or EMBEDMILL_REDIS_URL, or start everything with `embedmill up`",
            param="EMBEDMILL_BROKER_URL",
        )
    celery = Celery("embedmill", broker=broker, include=["workers.tasks"])
    is_amqp = broker.startswith("amqp")
    celery.conf.update(
        # Acknowledge when the work is done, and hand a message on when a child dies with it. A poison loop cannot come
        # of it: every claim counts in the database.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # A slot holds one message: prefetched ones would wait here while other workers idle.
        worker_prefetch_multiplier=1,
        # Results live in the database; a result backend would only grow.
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # JSON only: a broker is not trusted with code.
        accept_content=["json"],
        task_serializer="json",
        task_queues=[Queue(BULK_QUEUE, queue_arguments={"x-queue-type": "quorum"} if is_amqp else None)],  # type: ignore[no-untyped-call]
        task_default_queue=BULK_QUEUE,
        task_default_queue_type="quorum" if is_amqp else None,
        worker_detect_quorum_queues=is_amqp,
        worker_consumer="workers.consumer:Consumer",
        broker_transport_options=broker_options(broker),
        broker_connection_retry_on_startup=True,
        # The default gives up after 100 tries; a worker must outwait any broker.
        broker_connection_max_retries=None,
        # A lost connection must not kill a task whose upstream call is already paid for.
        # After a reconnect a slot that is free must get its message, whatever the others are still busy with.
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Anyone who can write to the broker could otherwise stop workers.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_soft_time_limit=SOFT_LIMIT_S,
        task_time_limit=SOFT_LIMIT_S + HARD_LIMIT_MARGIN_S,
        # A backstop against leaks of whatever runs in the child. Not a number of tasks too: Celery sometimes gives the
        # child that takes another's place no messages, and a child that does not leak need not be replaced.
        worker_max_memory_per_child=450_000,  # KiB
        worker_soft_shutdown_timeout=20.0,
        worker_enable_soft_shutdown_on_idle=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        timezone="UTC",
    )
    return celery


app = make()


@setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: object) -> None:
    configure_logging(settings.log_level, settings.log_format)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_loop(**_: object) -> None:
    configure_logging(settings.log_level, settings.log_format)
    tune_memory()
    loop.start(settings)
    signal.signal(DRAIN, lambda *_: loop.current().drain())


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain_children(**_: object) -> None:
    """A warm stop waits for the children's tasks: tell them, so that it is as short as one upstream call."""
    for child in active_children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, DRAIN)


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_loop(**_: object) -> None:
    loop.stop()
