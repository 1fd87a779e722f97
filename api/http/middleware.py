"""Around every request: an id, metrics, and a log line for failures. Pure ASGI, because every request passes here.

HEAD is answered wherever GET is, and a path means the same with a slash too many: without a redirect, which would have
to name a scheme and a host, and behind a proxy we know neither.
"""

from __future__ import annotations

import logging
import re
import time
from functools import lru_cache
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.application import HAS_BEGUN
from api.http.forwarded import client_address
from engine.observability.telemetry import REQUEST_SECONDS, REQUESTS
from models.base import random_id

log = logging.getLogger("embedmill.requests")
CLIENT_ID_CHARS = 128
PATH_CHARS = 200
PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/health", "/ping", "/version"})
# Clients of vector databases size their calls by these, and send one text a call where they are missing. Keys have no
# such limits today: the numbers say "as good as none", in the form that those clients can read.
RATE_LIMITS = [
    (b"x-ratelimit-limit-requests", b"1000000"),
    (b"x-ratelimit-limit-tokens", b"1000000000"),
    (b"x-ratelimit-remaining-requests", b"1000000"),
    (b"x-ratelimit-remaining-tokens", b"1000000000"),
    (b"x-ratelimit-reset-requests", b"1s"),
    (b"x-ratelimit-reset-tokens", b"1s"),
]
SLASHES = re.compile("/{2,}")
KEY_PATTERN = re.compile("em_[0-9A-Za-z_]+")
PARAM_PATTERN = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}\Z")


class RequestContext:
    """ASGI middleware: request id, metrics and log line of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = random_id("req")
        method, path = scope["method"], scope["path"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy: the server must still see that no body is wanted
            receive, send = _without_body(receive, send)
        if path[-1:] == "/" or "//" in path:
            path = scope["path"] = SLASHES.sub("/", path).rstrip("/") or "/"
        scope["request_id"] = request_id
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                scope[HAS_BEGUN] = True
                headers = message["headers"]
                headers.append((b"x-request-id", request_id.encode()))
                if getattr(scope.get("route"), "tells_limits", False):
                    headers += RATE_LIMITS
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            route = scope.get("route")
            template = getattr(route, "path", "unknown")  # never the caller's own path: no label explosion
            count, duration = _metrics_of(template, status)
            count.inc()
            duration.observe(seconds)
            client_id = None
            for name, value in scope["headers"]:
                if name == b"x-client-request-id":
                    client_id = value
                    break
            # Probes ask every second, and their answer is in the metrics.
            if (status >= 400 or client_id is not None) and scope["path"] not in PROBES:
                log.info(
                    "request",
                    extra={
                        "request_id": request_id,
                        "client_request_id": client_id[:CLIENT_ID_CHARS].decode("latin-1") if client_id else None,
                        "method": method,
                        "route": template,
                        "status": status,
                        "duration_ms": round(seconds * 1000, 1),
                        **_details(scope, status),
                    },
                )


@lru_cache(maxsize=1024)
def _metrics_of(template: str, status: int) -> tuple[Counter, Histogram]:
    """The children of the labelled metrics: looking them up costs more than counting."""
    return REQUESTS.labels(template, status), REQUEST_SECONDS.labels(template)


def _details(scope: Scope, status: int) -> dict[str, Any]:
    """Log fields for the caller, its address and the error: names and codes, never a text, a query or a key."""
    caller = scope.get("state", {}).get("caller")
    details = {"key_id": caller.key_id, "project": caller.project} if caller is not None else {}
    if "app" in scope:
        details["client"] = client_address(scope, scope["app"].state.trusted_proxies)
    if status >= 400:
        code, param = scope.get("error", (None, None))
        raw_path = scope.get("raw_path", b"").decode("latin-1")
        details["path"] = KEY_PATTERN.sub("em_…", raw_path)[:PATH_CHARS]
        details["code"] = code
        # A caller's own field names may be anything.
        details["param"] = param if param is None or PARAM_PATTERN.match(param) else "…"
    return details


def _without_body(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """For HEAD: send the head only, then report a disconnect, so that no body is produced."""
    is_sent = False

    async def receive_until_sent() -> Message:
        return {"type": "http.disconnect"} if is_sent else await receive()

    async def send_head(message: Message) -> None:
        nonlocal is_sent
        if is_sent:
            return
        await send(message)
        if message["type"] == "http.response.start":
            is_sent = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return receive_until_sent, send_head
