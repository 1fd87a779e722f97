"""The Celery app, and the reason for each setting. A message says that there is work; all state is in the database."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import NoReturn

import billiard.pool
from billiard import active_children
from billiard.util import get_logger as pool_logger
from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down

from engine.config.settings import Settings
from engine.connections import urls
from engine.observability.telemetry import configure_logging
from engine.process.allocator_tuning import tune_memory
from engine.process.background import surviving
from engine.queue.broker import broker_options, bulk_queue, declared_queue
from models.errors import ConfigError, EmbedmillError
from workers import loop, transport
from workers.message_check import refuse_compression
from workers.metric_files import compact

log = logging.getLogger("embedmill.worker")

settings = Settings.from_environment()
transport.use()
refuse_compression()

# A child that ends waits so long for its parent to read its last results: 20 times 0.1 s. Where one was lost, as after
# a lost connection, the library waits for 30 s, which a worker that is to stop does not have. Our results are in the
# database, and a message that is not acknowledged is delivered again, which does no harm.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 20

# Signal from the parent to its children: finish calls in flight, start no new ones.
DRAIN = signal.SIGUSR2


def make() -> Celery:
    """The configured app. Raises ConfigError without a broker."""
    broker = settings.broker
    if not broker:
        raise ConfigError(
            "no broker: set EMBEDMILL_BROKER_URL or EMBEDMILL_REDIS_URL, or start everything with `embedmill up`",
            param="EMBEDMILL_BROKER_URL",
        )
    celery = Celery("embedmill", include=["workers.tasks"])
    is_amqp = broker.startswith("amqp")
    celery.conf.update(
        **urls.redis_or_broker(broker, "EMBEDMILL_BROKER_URL").celery_options(),
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
        task_queues=[declared_queue(broker, settings.namespace)],
        task_default_queue=bulk_queue(settings.namespace),
        task_default_queue_type="quorum" if is_amqp else None,
        worker_detect_quorum_queues=is_amqp,
        worker_consumer="workers.consumer:Consumer",
        broker_transport_options=broker_options(broker, settings.namespace),
        broker_connection_retry_on_startup=True,
        # The default gives up after 100 tries; a worker must outwait any broker.
        broker_connection_max_retries=None,
        # A Redis that answers and refuses to write (a replica, too few replicas, a full disk) is outwaited too.
        broker_channel_error_retry=True,
        # A lost connection must not kill a task whose upstream call is already paid for.
        # After a reconnect a slot that is free must get its message, whatever the others are still busy with.
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Anyone who can write to the broker could otherwise stop workers.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_soft_time_limit=settings.soft_limit_s,
        task_time_limit=settings.hard_limit_s,
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
    configure_logging(settings.log_level, settings.log_format, service="worker")
    pool_logger().propagate = True  # what it says of dead children is a line of our log, in our format
    pool_logger().setLevel(logging.WARNING)  # and of the living it says much at INFO
    # Inherited by the children: one that is told to drain while it still starts has nothing to drain, and must not die.
    signal.signal(DRAIN, signal.SIG_IGN)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_loop(**_: object) -> None:
    configure_logging(settings.log_level, settings.log_format, service="worker")
    tune_memory()
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        with contextlib.suppress(OSError):  # a child that takes the place of one that has ended tidies up after it
            compact(Path(folder))
    with surviving(_end_worker):
        loop.start(settings)
    signal.signal(DRAIN, lambda *_: loop.current().drain())


def _end_worker(error: Exception) -> NoReturn:
    """End this child and its parent: with Celery alone it would take messages and do nothing about them."""
    reason = error.message if isinstance(error, EmbedmillError) else f"{type(error).__name__}: {error}"
    log.critical("this worker ends: %s", reason)
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain_children(**_: object) -> None:
    """A warm stop waits for the children's tasks: tell them, so that it is as short as one upstream call."""
    for child in active_children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, DRAIN)


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_loop(**_: object) -> None:
    loop.stop()
