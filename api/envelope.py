"""Around every request: an id, a clock, a log line where one is owed. Pure ASGI, for it is on the hottest path."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.telemetry import REQUEST_SECONDS, REQUESTS
from models.base import trace_id

log = logging.getLogger("embedmill.requests")
CLIENT_ID_CHARS = 128
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestEnvelope:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = trace_id("req")
        scope["request_id"] = request_id
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            route = scope.get("route")
            path = getattr(route, "path", "unknown")  # the template, never the caller's own path: no label explosion
            REQUESTS.labels(path, status).inc()
            REQUEST_SECONDS.labels(path).observe(seconds)
            client_id = next((v for k, v in scope["headers"] if k == b"x-client-request-id"), None)
            # Probes ask every second, and their answer is in the metrics.
            if (status >= 400 or client_id is not None) and path not in PROBES:
                log.info(
                    "request",
                    extra={
                        "request_id": request_id,
                        "client_request_id": client_id[:CLIENT_ID_CHARS].decode("latin-1") if client_id else None,
                        "method": scope["method"],
                        "route": path,
                        "status": status,
                        "duration_ms": round(seconds * 1000, 1),
                    },
                )
