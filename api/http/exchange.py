"""One request and its answer: uvicorn's cycle, which sends head and body of a short answer in one system call.

What runs here runs for every request. An answer of known length is begun when its first piece of the body is there:
two writes would cost two system calls, and wake the client twice. A head without a length goes out at once, since the
stream behind it may take long.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from api.http.request_body import IS_CUT_OFF

INVALID_NAME = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\\[\]={} \t"]')
INVALID_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# A longer body is not copied behind its head: both are given to the kernel side by side.
MAX_COPIED_BYTES = 64 * 1024
BODILESS = frozenset({204, 304})
_NOT_STARTED = "expected http.response.start, not {}"


class Exchange(RequestResponseCycle):
    """One request of a connection and its answer."""

    _head = b""  # of an answer whose body is still to come
    _ends_by_close = False  # the end of the body is the end of the connection, as HTTP/1.0 has no chunks

    def is_cut_off(self) -> bool:
        """True when the client has hung up before the end of its body."""
        return self.disconnected and self.more_body

    async def send(self, message: Any) -> None:
        """Send a part of the answer. Raises RuntimeError when the application sends what makes no answer."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(_NOT_STARTED.format(kind))
            self._start(message["status"], message.get("headers", ()))
        elif self.response_complete or kind != "http.response.body":
            raise RuntimeError(f"{kind} in an answer that {'is complete' if self.response_complete else 'has begun'}")
        else:
            self._continue(message.get("body", b""), is_last=not message.get("more_body", False))

    def _start(self, status: int, headers: Any) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        parts = [STATUS_LINE[status]]
        values = []
        is_closing = False
        for name, value in headers:
            name, start = _field(name)
            parts += (start, value, b"\r\n")
            values.append(value)
            if name == b"content-length" and self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
            elif name == b"connection" and b"close" in (token.strip().lower() for token in value.split(b",")):
                self.keep_alive = False
                is_closing = True
        if INVALID_VALUE.search(b"".join(values)):
            raise RuntimeError("a header of the answer has a value that HTTP does not allow")
        has_unknown_length = self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in BODILESS
        if has_unknown_length and self.scope.get("http_version") == "1.0":
            self._ends_by_close, self.keep_alive = True, False
        elif has_unknown_length:
            self.chunked_encoding = True
            parts.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive and not is_closing:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        if has_unknown_length or self.chunked_encoding:
            self.transport.write(head)
        else:
            self._head = head

    def _continue(self, body: bytes, *, is_last: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if is_last:
                body += b"0\r\n\r\n"
        elif not self._ends_by_close:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the body of the answer is longer than its content-length")
        head = self._head
        if not head:
            self.transport.write(body)
        else:
            self._head = b""
            if len(body) <= MAX_COPIED_BYTES:
                self.transport.write(head + body)
            else:
                self.transport.writelines((head, body))
        if is_last:
            self._complete()

    def _complete(self) -> None:
        if self.expected_content_length:
            raise RuntimeError("the body of the answer is shorter than its content-length")
        self.response_complete = True
        # It refers to this object, which refers to the scope: without it both are freed at once, not by the collector.
        cast("dict[str, Any]", self.scope).pop(IS_CUT_OFF, None)
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


@lru_cache(maxsize=256)
def _field(name: bytes) -> tuple[bytes, bytes]:
    """A header's name in lower case, and how its line begins. Raises RuntimeError for what is no name."""
    if INVALID_NAME.search(name):
        raise RuntimeError("a header of the answer has a name that HTTP does not allow")
    name = name.lower()
    return name, name + b": "
