"""Celery's consumer without the step that declares 28 queues in RabbitMQ for delays: no message of ours has one."""

from __future__ import annotations

from celery.worker.consumer import Consumer as CeleryConsumer

DELAYS = "celery.worker.consumer.delayed_delivery:DelayedDelivery"


class Consumer(CeleryConsumer):  # type: ignore[misc]
    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]
        default_steps = tuple(step for step in CeleryConsumer.Blueprint.default_steps if step != DELAYS)
