"""The scheduler: sweeps, dispatches and sends webhooks periodically. Any number of them may run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys

from engine.config.settings import Settings
from engine.jobs.composition import dispatcher_of, sweep_of
from engine.jobs.execution.release import BACKOFF_CAP_S
from engine.jobs.maintenance.clock_steps import clamp_future_instants, extend_leases_after_outage
from engine.observability.telemetry import SCHEDULER_ROUNDS, SWEEP_SECONDS, configure_logging
from engine.process.background import ErrorLog
from engine.queue import process_heartbeats
from engine.runtime import Runtime
from engine.webhooks.delivery import WebhookDeliveries
from models.errors import ConfigError, StorageUnavailable
from workers.health_and_metrics import serve_operations
from workers.webhooks import run_webhooks

log = logging.getLogger("embedmill.scheduler")
DISPATCH_EVERY_S = 0.5
STOP_S = 2.0


async def run_forever(settings: Settings, ops_port: int = 0) -> None:
    """Sweep every `sweep_s` and dispatch in between, until SIGTERM or SIGINT."""
    configure_logging(settings.log_level, settings.log_format, service="scheduler")
    if ops_port:
        serve_operations(settings.ops_host, ops_port)
    runtime = Runtime.open(settings, pool_size=2)
    sweep, dispatcher = sweep_of(runtime), dispatcher_of(runtime)
    deliveries = WebhookDeliveries(runtime.database, settings)
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    log.info(
        "embedmill %s: the scheduler dispatches every %g s and sweeps every %g s",
        process_heartbeats.OUR_VERSION,
        DISPATCH_EVERY_S,
        settings.sweep_s,
    )
    heartbeat = asyncio.create_task(process_heartbeats.heartbeat_loop(runtime.database, "scheduler"))
    webhooks = asyncio.create_task(run_webhooks(runtime, deliveries, stopping))
    next_sweep = 0.0
    # A new scheduler does not know how long the database was unavailable before, nor whether its clock was set.
    database_was_away = is_new = True
    errors = {duty: ErrorLog(f"the {duty}") for duty in ("sweep", "dispatch")}
    try:
        while not stopping.is_set():
            now = asyncio.get_running_loop().time()
            duty = "sweep" if now >= next_sweep else "dispatch"
            # Recovery depends on the sweep, so a failed round must not end it.
            with errors[duty].round() as this:
                if database_was_away:
                    await extend_leases_after_outage(runtime.store, runtime.database_clock)
                    database_was_away = False
                if is_new:
                    await clamp_future_instants(runtime.store, due_within_s=BACKOFF_CAP_S)
                    is_new = False
                if duty == "sweep":
                    next_sweep = now + settings.sweep_s
                    with SWEEP_SECONDS.time():
                        await sweep.run()
                else:
                    await dispatcher.dispatch()
            is_away = isinstance(this.error, StorageUnavailable)
            database_was_away = database_was_away or is_away
            outcome = "ok" if this.error is None else "database_away" if is_away else "failed"
            SCHEDULER_ROUNDS.labels(duty, outcome).inc()
            try:
                async with asyncio.timeout(DISPATCH_EVERY_S):
                    await stopping.wait()
            except TimeoutError:
                pass
    finally:
        heartbeat.cancel()
        stopping.set()
        await asyncio.wait({heartbeat, webhooks}, timeout=STOP_S)  # it signs off
        await runtime.close()
        log.info("scheduler stopped")


def main() -> None:
    """Parse the command line and run until a signal."""
    parser = argparse.ArgumentParser(prog="scheduler", description=__doc__)
    parser.add_argument("--ops-port", type=int, help="port of /healthz and /metrics; default EMBEDMILL_OPS_PORT")
    ops_port = parser.parse_args().ops_port
    try:
        settings = Settings.from_environment()
        asyncio.run(run_forever(settings, settings.ops_port if ops_port is None else ops_port))
    except ConfigError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()
