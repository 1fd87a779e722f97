"""The server process: uvicorn's, with a bounded set of connections, a second port for operators, and a drain.

On SIGTERM it goes on serving for `drain_s`, while /readyz says 503 and each answer ends its connection, so that load
balancers send new requests elsewhere. Then it closes its listener and lets requests under way finish. SIGINT skips the
drain, and a second signal ends requests too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from importlib.metadata import version
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from api.http.connection import Connection
from api.http.connection_table import ConnectionTable
from api.http.lifecycle import Lifecycle
from engine.config.settings import Settings

log = logging.getLogger("embedmill.api")

GRACEFUL_STOP_S = 20
HURRIED_STOP_S = 3.0
SWEEP_EVERY_TICKS = 10  # of uvicorn's, which are a tenth of a second
MAX_BACKLOG = 2048


class Config(uvicorn.Config):
    """Uvicorn's configuration with our protocol class and its connection table."""

    def __init__(self, app: ASGIApp, table: ConnectionTable, **options: Any) -> None:
        super().__init__(
            app,
            loop="uvloop",
            http=Connection,
            ws="none",
            proxy_headers=False,
            access_log=False,
            server_header=False,
            log_config=None,
            timeout_graceful_shutdown=GRACEFUL_STOP_S,
            # Each accepted connection takes a descriptor before the table sees it.
            backlog=min(MAX_BACKLOG, table.limit),
            **options,
        )
        self.connection_table = table


class ApiServer(uvicorn.Server):
    """Serves the API, and on `ops_port` the operators' pages where they have a port of their own."""

    config: Config

    def __init__(
        self,
        settings: Settings,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        lifecycle: Lifecycle,
        table: ConnectionTable,
        ops_app: ASGIApp | None = None,
    ) -> None:
        super().__init__(Config(app, table, host=host, port=port))
        self._ops = Config(ops_app, table, host=host, port=settings.ops_port) if ops_app is not None else None
        self._table = table
        self._lifecycle = lifecycle
        self._drain_s = settings.drain_s
        self._drained_at: float | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Open the listeners, the operators' one too."""
        await super().startup(sockets)
        for listener in self.servers:
            for sock in listener.sockets:
                host, port = sock.getsockname()[:2]
                log.info("embedmill %s listens on %s, port %d", version("embedmill"), host, port)
        if self._ops is not None:
            self._ops.load()
            loop = asyncio.get_running_loop()
            ops, state = self._ops, self.lifespan.state
            try:
                server = await loop.create_server(
                    lambda: Connection(ops, self.server_state, state), ops.host, ops.port, backlog=ops.backlog
                )
            except OSError as error:
                log.error("the port for operations cannot be opened: %s", error)
                self.should_exit = True
                return
            self.servers.append(server)

    async def on_tick(self, counter: int) -> bool:
        """Sweep the connections once a second, and end the drain when its time is over."""
        if counter % SWEEP_EVERY_TICKS == 0:
            self._table.sweep(asyncio.get_running_loop().time())
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM starts the drain; a second signal ends requests too."""
        if self.should_exit or self._drained_at is not None:
            self.should_exit = self.force_exit = True
        elif sig == signal.SIGTERM and self._drain_s > 0:
            self._drained_at = time.monotonic() + self._drain_s
            self._lifecycle.is_draining = self._table.is_draining = True
            log.info("stopping: new requests are served for %g s more", self._drain_s)
        else:
            self._lifecycle.is_draining = self._table.is_draining = True
            self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """Close the listeners and end the remaining requests."""
        self._lifecycle.stop()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave now: what requests have cost must still be written down
            await self._end_requests()
        log.info("stopped")

    async def _end_requests(self) -> None:
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HURRIED_STOP_S):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.lifespan.shutdown()
