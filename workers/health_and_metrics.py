"""`/healthz` and `/metrics` of a worker or a scheduler, on a port of its own. No key needed, nothing secret in it."""

from __future__ import annotations

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST

from engine.observability.telemetry import render_metrics
from models.errors import ConfigError

log = logging.getLogger("embedmill.operations")
REQUEST_S = 10.0  # a client that sends nothing for so long is disconnected


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_S

    def do_GET(self) -> None:  # the library's name
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, CONTENT_TYPE_LATEST, render_metrics())
        elif path == "/healthz":
            self._answer(200, "application/json", b'{"status":"ok"}')
        else:
            self._answer(404, "application/json", b'{"error":"/healthz and /metrics are served here"}')

    do_HEAD = do_GET  # noqa: N815  # the library's name

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: they are not logged."""


def serve_operations(host: str, port: int) -> None:
    """Serve from a thread of this process, until it ends. Raises ConfigError when the port cannot be had."""
    try:
        server = ThreadingHTTPServer((host, port), _Handler)
    except OSError as error:
        raise ConfigError(
            f"port {port} of EMBEDMILL_OPS_PORT cannot be listened on: {error.strerror}", param="EMBEDMILL_OPS_PORT"
        ) from error
    threading.Thread(target=server.serve_forever, name="embedmill-operations", daemon=True).start()
    log.info("metrics and health at port %d", server.server_address[1])
