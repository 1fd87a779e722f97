"""A receiver of webhooks on loopback: a real HTTP server in threads, which answers as a test says."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import orjson

CHUNK = b"x" * 65_536


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `hangs`: not before the receiver is released. `endless`: a body without an end."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = orjson.loads(self.body)
        return event


class Receiver:
    """Use it as a context manager. `reply` may be changed at any time, or be a function of the request."""

    def __init__(self) -> None:
        self.reply: Reply | Callable[[Received], Reply] = Reply()
        self.received: list[Received] = []
        self.body_bytes_sent = 0
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen; before it, and after `stop`, connections are refused."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver._answer(self, Received(self.path, headers, body))

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a client that has hung up

        self._released.clear()
        self._server = Server(("127.0.0.1", self.port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._released.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def of_type(self, event_type: str) -> list[Received]:
        return [each for each in self.received if each.event["type"] == event_type]

    def ids(self) -> list[str]:
        return [each.id for each in self.received]

    def _answer(self, handler: BaseHTTPRequestHandler, received: Received) -> None:
        self.received.append(received)
        reply = self.reply(received) if callable(self.reply) else self.reply
        if reply.hangs:
            self._released.wait(60)
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if not reply.endless:
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        handler.end_headers()
        with suppress(OSError):
            while not self._released.is_set():
                handler.wfile.write(CHUNK)
                self.body_bytes_sent += len(CHUNK)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
