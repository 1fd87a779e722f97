"""The scheduler's webhooks: reports the progress of jobs, sends what is due, removes old events."""

from __future__ import annotations

import asyncio
import time

from engine.process.background import ErrorLog
from engine.runtime import Runtime
from engine.webhooks.delivery import WebhookDeliveries
from engine.webhooks.job_events import report_progress
from engine.webhooks.purge import purge_events

SEND_EVERY_S = 0.5
PURGE_EVERY_S = 60.0
# For the sends that are under way when the scheduler stops.
STOP_S = 1.0


async def run_webhooks(runtime: Runtime, deliveries: WebhookDeliveries, stopping: asyncio.Event) -> None:
    """Until `stopping` is set. A task of its own: a slow receiver delays no sweep. Errors are logged and survived."""
    errors = {duty: ErrorLog(f"the {duty} of webhooks") for duty in ("progress", "delivery", "purge")}
    next_progress = next_purge = 0.0
    try:
        while not stopping.is_set():
            now = time.monotonic()
            if now >= next_progress:
                next_progress = now + runtime.settings.sweep_s
                with errors["progress"].round():
                    await report_progress(runtime.database)
            with errors["delivery"].round():
                await deliveries.send_due()
            if now >= next_purge:
                next_purge = now + PURGE_EVERY_S
                with errors["purge"].round():
                    await purge_events(runtime.database, runtime.settings)
            try:
                async with asyncio.timeout(SEND_EVERY_S):
                    await stopping.wait()
            except TimeoutError:
                pass
    finally:
        await deliveries.close(timeout_s=STOP_S)
