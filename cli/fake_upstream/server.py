"""The HTTP side of the fake upstream: connections, counters and the bill.

Built on a bare protocol, because it must cost little beside the thing that is measured.
"""

from __future__ import annotations

import asyncio
import email.utils
import http.client
import os
import socket
import struct
import time
from pathlib import Path
from typing import cast

import httptools
import orjson

from models.errors import ConfigError
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake import BilledCall, FakeAnswer, FakeScript, FakeUpstream
from providers.fake.replies import JSON_HEADERS

_JSON_LINES = "".join(f"{name}: {value}\r\n" for name, value in JSON_HEADERS.items())
_GOOD_HEAD = f"HTTP/1.1 200 OK\r\n{_JSON_LINES}x-request-id: req_%032x\r\ncontent-length: %d\r\n\r\n".encode()


class FakeServer:
    """One fake upstream, its counters and its bill, shared by all connections."""

    def __init__(self, upstream: FakeUpstream, log_path: Path | None = None, *, log_inputs: bool = False) -> None:
        self.upstream = upstream
        self.log_inputs = log_inputs
        self.script_text: bytes = b"[]"
        self.calls = self.billed_calls = self.billed_inputs = self.billed_tokens = 0
        self.in_flight = self.max_in_flight = 0
        self.faults: dict[str, int] = {}
        self._log = None if log_path is None else os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def bill(self, billed: BilledCall, fault: str | None, *, caller_gone: bool) -> None:
        """Count the call and append its line to the log; one write, so that a kill never leaves half a line."""
        self.billed_calls += 1
        self.billed_inputs += billed.inputs
        self.billed_tokens += billed.tokens
        if self._log is None:
            return
        line: dict[str, object] = {
            "time": time.time(),
            "model": billed.model,
            "inputs": billed.inputs,
            "tokens": billed.tokens,
            "digest": billed.digest,
            "fault": fault,
            "caller_gone": caller_gone,
        }
        if self.log_inputs:
            line["input_hashes"] = billed.input_hashes
        os.write(self._log, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def stats(self) -> dict[str, object]:
        """What happened so far, and the CPU-seconds it took."""
        names = ("calls", "billed_calls", "billed_inputs", "billed_tokens", "faults", "in_flight", "max_in_flight")
        return {name: getattr(self, name) for name in names} | {"cpu_s": time.process_time(), "pid": os.getpid()}

    def control(self, method: str, path: str, body: bytes) -> UpstreamReply:
        """Answer the paths that are not the provider's."""
        if path == "/healthz":
            return UpstreamReply(200, JSON_HEADERS, b'{"status":"ok"}')
        if path == "/__stats":
            return UpstreamReply(200, JSON_HEADERS, orjson.dumps(self.stats()))
        if path == "/__script" and method == "PUT":
            try:
                self.upstream.script = FakeScript.parse_text(body.decode("utf-8", "replace"))
            except ConfigError as error:
                return UpstreamReply(400, JSON_HEADERS, orjson.dumps({"error": {"message": error.message}}))
            self.script_text = body
        return UpstreamReply(200, {"content-type": "text/plain"}, self.script_text)


class Connection(asyncio.Protocol):
    """One caller. Requests on a connection are answered one after another, as its client waits for each."""

    transport: asyncio.Transport

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are not of asyncio's classes

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; close the connection when it is not HTTP."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        self.url += url

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        """The request is whole: answer it, at once or after the script's delay."""
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        method, path = self.parser.get_method().decode(), self.url.decode("latin-1")
        request = UpstreamRequest(method, path, self.headers, body)
        self.url, self.headers, self.chunks = b"", {}, []
        server = self.server
        if path.startswith(("/__", "/healthz")):
            self._send(server.control(method, path, body))
            return
        answer = server.upstream.answer(request, time.time())
        server.calls += 1
        server.in_flight += 1
        server.max_in_flight = max(server.max_in_flight, server.in_flight)
        if answer.delay_s > 0:
            asyncio.get_running_loop().call_later(answer.delay_s, self._deliver, answer)
        else:
            self._deliver(answer)

    def _deliver(self, answer: FakeAnswer) -> None:
        server, reply, fault = self.server, answer.reply, answer.fault
        server.in_flight -= 1
        if fault or reply.status != 200:
            name = fault or str(reply.status)
            server.faults[name] = server.faults.get(name, 0) + 1
        if answer.billed:
            server.bill(answer.billed, fault, caller_gone=self.transport.is_closing())
        if fault == "hang" or self.transport.is_closing():
            return
        if fault == "reset":
            # Closing with a linger of 0 s sends RST in place of FIN.
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault in ("reset", "close"):
            self.transport.abort()
        elif fault == "truncate":
            self._send(reply, answer.promised_bytes)
            self.transport.close()
        elif answer.slow_body_s:
            half = len(reply.body) // 2
            self.transport.write(self._head(reply, len(reply.body)) + reply.body[:half])
            asyncio.get_running_loop().call_later(answer.slow_body_s, self.transport.write, reply.body[half:])
        else:
            self._send(reply)

    def _send(self, reply: UpstreamReply, promised_bytes: int | None = None) -> None:
        head = self._head(reply, len(reply.body) if promised_bytes is None else promised_bytes)
        if len(reply.body) < 65536:
            self.transport.write(head + reply.body)
        else:
            self.transport.writelines((head, reply.body))
        if not self.parser.should_keep_alive():
            self.transport.close()

    def _head(self, reply: UpstreamReply, length: int) -> bytes:
        if reply.headers is JSON_HEADERS and reply.status == 200:
            return _GOOD_HEAD % (self.server.calls, length)
        headers = {**reply.headers, "x-request-id": f"req_{self.server.calls:032x}", "content-length": str(length)}
        headers["date"] = email.utils.formatdate(usegmt=True)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        phrase = http.client.responses.get(reply.status, "Unknown")
        return f"HTTP/1.1 {reply.status} {phrase}\r\n{lines}\r\n".encode()


class HeaderConnection(Connection):
    """A connection that reads headers too: only needed, and only paid for, where a key is demanded."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")
