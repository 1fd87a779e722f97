"""The scheduler: sweeps and dispatches, again and again. Any number of them may run."""

from __future__ import annotations

import asyncio
import logging
import signal

from engine.jobs.dispatch import dispatch
from engine.jobs.sweep import spare_leases, sweep
from engine.runtime import Runtime
from engine.settings import Settings
from engine.telemetry import configure_logging
from models.errors import StorageUnavailable

log = logging.getLogger("embedmill.scheduler")
DISPATCH_EVERY_S = 0.5


async def run_forever(settings: Settings) -> None:
    """Sweep every `sweep_s` and dispatch in between, until SIGTERM or SIGINT."""
    configure_logging(settings.log_level, settings.log_format)
    runtime = Runtime.open(settings, pool_size=2)
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    log.info("scheduler started")
    next_sweep = 0.0
    # A scheduler that has just started cannot know how long the database was away before.
    away = True
    try:
        while not stopping.is_set():
            now = asyncio.get_running_loop().time()
            try:
                if away:
                    await spare_leases(runtime)
                    away = False
                if now >= next_sweep:
                    next_sweep = now + settings.sweep_s
                    await sweep(runtime)
                else:
                    await dispatch(runtime)
            except StorageUnavailable:
                away = True
                log.warning("the database does not answer; the sweep tries again")
            except Exception:
                # The sweep is the last authority: one bad round must not be its last.
                log.exception("a sweep failed")
            try:
                async with asyncio.timeout(DISPATCH_EVERY_S):
                    await stopping.wait()
            except TimeoutError:
                pass
    finally:
        await runtime.close()
        log.info("scheduler stopped")


def main() -> None:
    asyncio.run(run_forever(Settings.from_environment()))


if __name__ == "__main__":
    main()
