"""One HTTP/1.1 connection: uvicorn's protocol with limits on heads and trailers, and with timeouts.

httptools has no bounds of its own and joins what it has not finished at each piece that arrives, so bytes are counted
here before it sees more of them. The clock is one sweep a second over all connections (`ConnectionTable`): a request
costs no timer. What runs here runs for every request, so it reads attributes and adds numbers, and calls nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.http import errors
from api.http.connection_table import ConnectionTable, Phase, address_group
from api.http.exchange import Exchange
from api.http.request_body import IS_CUT_OFF
from models.errors import (
    EmbedmillError,
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
    UrlTooLong,
)

MAX_HEAD_BYTES = 64 * 1024  # of a head, or of the trailers and chunk extensions between two pieces of a body
MAX_URL_BYTES = 32 * 1024
MAX_HEADERS = 256
MAX_PIPELINED = 16
MAX_DISCARDED_BYTES = 64 * 1024 * 1024  # of a body whose answer was given before it had arrived
MIN_PROGRESS_BYTES = 512
# Hop-by-hop fields of an offer to change the protocol, which is ignored (RFC 9110 §7.8).
UPGRADE_FIELDS = frozenset({b"upgrade", b"http2-settings"})

HEAD_TOO_LARGE = HeadersTooLarge(
    f"The request's head is larger than {MAX_HEAD_BYTES} bytes. Send fewer or shorter headers."
)
TOO_MANY_HEADERS = HeadersTooLarge(f"The request has more than {MAX_HEADERS} header fields. Send fewer.")
URL_TOO_LONG = UrlTooLong(f"The request's URL is longer than {MAX_URL_BYTES} bytes. Send the data in the body.")
BESIDE_BODY_TOO_LARGE = HeadersTooLarge(
    f"Trailers or chunk extensions are larger than {MAX_HEAD_BYTES} bytes. Send the body without them."
)
MALFORMED = MalformedRequest(
    "This is not a valid HTTP/1.1 request. Use an HTTP client, and http:// where no proxy adds TLS."
)
NO_TUNNELS = MalformedRequest("CONNECT is not supported: this is not a proxy. Send requests to it directly.")
HEAD_TIMEOUT = RequestTimeout("The request's head did not arrive in time. Send the request again.")
BODY_TIMEOUT = RequestTimeout("The request's body stopped arriving. Send the request again.")


class _Refused(Exception):
    """Ends the parser's work on a request that is refused; it passes through httptools, which wraps it."""


class Connection(HttpToolsProtocol):
    """One client connection: uvicorn's protocol, with bounds on bytes and a clock."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.table: ConnectionTable = config.connection_table
        self.address = ""
        self._received_bytes = 0
        self._unfinished_bytes = 0  # given to the parser since something of a request was last complete
        self._head_bytes = 0
        self._discarded_bytes = 0
        self._is_in_head = True
        self._is_upgrade = False  # a head that offers another protocol has just been read
        self._is_refused = False  # nothing that arrives is read any more
        self._is_answered = False  # the refusal has been written
        self._refusal: EmbedmillError | None = None
        self._running: Exchange | None = None  # the oldest without its whole answer; `cycle` is the latest
        self._writes_resumed = 0
        # The clock: what the last sweep saw, and since when it has seen no progress.
        self._last_state: tuple[Any, ...] = ()
        self._last_bytes = 0
        self._progress_at = self.loop.time()

    # --- The life of the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, or write why not and close it."""
        peer = transport.get_extra_info("peername")
        self.address = address_group(str(peer[0])) if isinstance(peer, tuple) else "local"
        refusal = self.table.admit(self)
        if refusal is None:
            super().connection_made(transport)
            return
        self.transport = transport
        self._is_refused = True
        transport.write(errors.raw_response(refusal))
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the table, and tell the request that is being served: others of the pipeline are never begun."""
        self.table.remove(self)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def evict(self) -> None:
        """Make room for another connection: nothing is under way here."""
        self._is_refused = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Count the bytes, then give them to the parser."""
        if self._is_refused:
            return
        size = len(data)
        self._received_bytes += size
        self._unfinished_bytes += size
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            if not self._is_refused:
                self._refuse(self._refusal or MALFORMED)
            return
        if self._unfinished_bytes > MAX_HEAD_BYTES:
            self._refuse(HEAD_TOO_LARGE if self._is_in_head else BESIDE_BODY_TOO_LARGE)

    # --- What the parser finds ---

    def on_message_begin(self) -> None:
        """A new request begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._is_in_head = True

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        self.url += url
        if len(self.url) > MAX_URL_BYTES:
            self._reject(URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field, or one trailer."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            self._reject(HEAD_TOO_LARGE if self._is_in_head else BESIDE_BODY_TOO_LARGE)
        if not self._is_in_head:  # a trailer, dropped: the application has seen the head
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: start the application, unless the head is refused or the pipeline is full."""
        if len(self.headers) > MAX_HEADERS:
            self._reject(TOO_MANY_HEADERS)
        if self.parser.should_upgrade():
            self._is_upgrade = True  # the parser stops behind this head, and raises HttpParserUpgrade
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self.cycle.keep_alive = False  # the connection ends with the answer to the request before this one
            self._is_refused = True
            raise _Refused
        self._is_in_head = False
        self._unfinished_bytes = self._discarded_bytes = 0
        self._begin_exchange()
        self.table.mark_busy(self)

    def _begin_exchange(self) -> None:
        """Start the application on the request whose head is whole, or queue it behind the one before it."""
        # As uvicorn's, with our class of exchange, and without what is not configured here.
        parser, scope = self.parser, cast("dict[str, Any]", self.scope)
        http_version = parser.get_http_version()
        if http_version != "1.1":
            scope["http_version"] = http_version
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["method"] = parser.get_method().decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        previous = self.cycle
        exchange = self.cycle = Exchange(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=http_version != "1.0" and parser.should_keep_alive() and not self.table.is_draining,
            on_response=self.on_response_complete,
        )
        # A body in hand may unpack to much, and the application asks for no more of it until that is stored.
        scope[IS_CUT_OFF] = exchange.is_cut_off
        if previous is None or previous.response_complete:
            self._running = exchange
            self._start_asgi_task(exchange, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def on_body(self, body: bytes) -> None:
        """A piece of the body; discarded once the answer has been sent."""
        self._unfinished_bytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self._is_refused = True
                self.transport.close()
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._unfinished_bytes = 0
        if self._is_upgrade:
            return
        self._is_in_head = True
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        """The answer has been sent: serve the next request of the pipeline, or wait for one."""
        # As uvicorn's, without a timer for each answer: the sweep knows when a connection has been idle for too long.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._running = cast("Exchange", cycle)
            self._start_asgi_task(cycle, app)
        else:
            self.table.mark_idle(self)

    def resume_writing(self) -> None:
        """The client has read enough for more to be written."""
        self._writes_resumed += 1
        super().resume_writing()

    # --- Refusals ---

    def _reject(self, error: EmbedmillError) -> None:
        self._refusal = error
        raise _Refused

    def _refuse(self, error: EmbedmillError) -> None:
        self.table.count_closed(error.code)
        self._answer_and_close(error)

    def _answer_and_close(self, error: EmbedmillError) -> None:
        """Say why, take nothing more, and close once the client has had time to read it."""
        self._is_refused = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or not cycle.more_body:
                cycle.keep_alive = False  # that answer is the last one, after those of the requests before it
                return
            if self.pipeline:  # its body is cut off, and it was not begun: the answer before it is the last one
                self.pipeline.popleft()
                last = self.pipeline[0][0] if self.pipeline else self._running
                cast("Any", last).keep_alive = False
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self._is_answered = True
        self.flow.resume_reading()
        self.transport.write(errors.raw_response(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.table.mark_idle(self)

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's refusal of malformed input, in our envelope."""
        self._refuse(MALFORMED)

    def _ignore_upgrade(self, remaining: bytes) -> None:
        """Read the request as if it had not offered another protocol: a fresh parser reads the head without the offer.

        A server that ignores `Upgrade` reads the body by HTTP/1.1's rules (RFC 9110 §7.8); llhttp stops at the head.
        """
        method = self.parser.get_method()
        self._is_upgrade = False
        if method == b"CONNECT":
            self._refuse(NO_TUNNELS)
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() not in UPGRADE_FIELDS]
                value = b",".join(tokens)
            if name not in UPGRADE_FIELDS and value.strip():
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._unfinished_bytes = 0
        self.data_received(b"\r\n".join([*lines, b"\r\n"]) + remaining)

    # --- The clock ---

    def phase(self) -> Phase:
        """What the connection waits for now."""
        cycle = self.cycle
        if self.transport.is_closing():
            return Phase.CLOSE
        if self.flow.write_paused:
            return Phase.WRITE
        if self._is_answered:
            return Phase.LINGER
        if cycle is not None and not cycle.response_complete:
            is_waiting = cycle.more_body and not self.flow.read_paused and not cycle.waiting_for_100_continue
            return Phase.BODY if is_waiting else Phase.WORK
        if cycle is None or self._unfinished_bytes:
            return Phase.HEAD
        return Phase.IDLE if self._is_in_head else Phase.BODY

    def has_moved(self, phase: Phase, now: float) -> bool:
        """True when it has gone on since its clock was set; the clock is then set anew."""
        state = (phase, self.cycle, self._writes_resumed)
        if phase is Phase.BODY:
            moved_bytes = self._received_bytes
        elif phase in (Phase.WRITE, Phase.CLOSE):
            moved_bytes = -self.transport.get_write_buffer_size()
        else:
            moved_bytes = self._last_bytes
        if state == self._last_state and moved_bytes - self._last_bytes < MIN_PROGRESS_BYTES:
            return False
        self._last_state, self._last_bytes, self._progress_at = state, moved_bytes, now
        return True

    def waited_s(self, now: float) -> float:
        """Seconds since its last progress."""
        return now - self._progress_at

    def expire(self, phase: Phase) -> None:
        """Close it: its time in this phase is over."""
        if phase in (Phase.WRITE, Phase.CLOSE):
            self._is_refused = True
            self.transport.abort()  # a polite close waits for the client to read
        elif phase is Phase.BODY and not cast("Any", self.cycle).response_complete:
            self._answer_and_close(BODY_TIMEOUT)
        elif phase is Phase.HEAD and self._received_bytes:
            self._answer_and_close(HEAD_TIMEOUT)
        else:
            self._is_refused = True
            self.transport.close()
