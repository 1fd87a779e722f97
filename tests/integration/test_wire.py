"""The wire against small local servers, each of which misbehaves in one way."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from engine.upstream.http import HttpTransport
from models.errors import UpstreamProtocolError, UpstreamTimeout, UpstreamUnavailable
from providers.base import UpstreamReply, UpstreamRequest

pytestmark = pytest.mark.asyncio

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 10.0  # a bound on hanging, never waited out by a passing test


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve every connection with `handler`; yield the base URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(handle(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def wire() -> AsyncIterator[HttpTransport]:
    wire = HttpTransport(connect_timeout_s=0.3)
    yield wire
    await wire.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
    return head, await reader.readexactly(int(lengths[0]) if lengths else 0)


def post(url: str, headers: dict[str, str] | None = None) -> UpstreamRequest:
    return UpstreamRequest("POST", url, headers or {"accept-encoding": "identity"}, b'{"input":"x"}')


async def send(
    wire: HttpTransport, url: str, *, timeout_s: float = PATIENCE_S, max_reply_bytes: int = 10_000
) -> UpstreamReply:
    return await wire.send(post(url), timeout_s=timeout_s, max_reply_bytes=max_reply_bytes)


def replying(raw: bytes) -> Handler:
    """Answer each request of a connection with the same bytes, then close when the peer does."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(raw)
            await writer.drain()

    return handler


def replying_once(raw: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(raw)
        await writer.drain()

    return handler


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose accept queue is full, so that connecting to it never ends."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in its own interpreter, from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


# --- Good replies -----------------------------------------------------------------------------------------------------


async def test_sends_the_exact_bytes_and_returns_the_whole_reply(wire: HttpTransport) -> None:
    seen: list[tuple[str, bytes]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nX-Request-ID: r1\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()

    async with serving(handler) as url:
        request = post(f"{url}/v1/embeddings?a=1", {"Authorization": "Bearer sk-1", "accept-encoding": "identity"})
        reply = await wire.send(request, timeout_s=PATIENCE_S, max_reply_bytes=5)
    assert reply == UpstreamReply(200, {"x-request-id": "r1", "content-length": "5"}, b"hello")
    head, body = seen[0]
    assert head.startswith("POST /v1/embeddings?a=1 HTTP/1.1\r\n")
    assert "authorization: bearer sk-1" in head.lower() and "accept-encoding: identity" in head.lower()
    assert body == request.body


async def test_reads_a_large_chunked_reply_whole(wire: HttpTransport) -> None:
    piece = bytes(range(256)) * 256
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += (b"%x\r\n%s\r\n" % (len(piece), piece)) * 64 + b"0\r\n\r\n"
    async with serving(replying(raw)) as url:
        reply = await send(wire, url, max_reply_bytes=64 * len(piece))
    assert reply.body == piece * 64


async def test_a_header_that_is_not_ascii_does_not_cost_the_reply(wire: HttpTransport) -> None:
    raw = b"HTTP/1.1 200 OK\r\nX-Bad: caf\xe9\r\nX-Good: 1\r\nContent-Length: 2\r\n\r\nok"
    async with serving(replying(raw)) as url:
        reply = await send(wire, url)
    assert (reply.body, reply.headers["x-good"]) == (b"ok", "1")


async def test_sends_a_large_body_whole_and_adds_no_content_type(wire: HttpTransport) -> None:
    large = bytes(range(256)) * 20_000
    seen: list[tuple[str, bytes]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with serving(handler) as url:
        await wire.send(UpstreamRequest("POST", url, {}, large), timeout_s=PATIENCE_S, max_reply_bytes=10)
    head, body = seen[0]
    assert body == large
    assert f"content-length: {len(large)}" in head.lower()
    assert "content-type" not in head.lower() and "transfer-encoding" not in head.lower()
    assert "accept-encoding: identity" in head.lower()


async def test_sends_the_url_as_it_was_signed(wire: HttpTransport) -> None:
    seen: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await read_request(reader))[0].split(" ")[1])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    target = "/model/amazon.titan%3A0/invoke?b=%2F&a=1+1&c=%7e"
    async with serving(handler) as url:
        await send(wire, url + target)
    assert seen == [target]


async def test_any_status_is_a_reply(wire: HttpTransport) -> None:
    async with serving(replying(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy")) as url:
        reply = await send(wire, url)
    assert (reply.status, reply.headers["retry-after"], reply.body) == (503, "7", b"busy")


@pytest.mark.fault(36)
async def test_does_not_follow_redirects(wire: HttpTransport) -> None:
    visited: list[str] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visited.append((await read_request(reader))[0])

    async with serving(elsewhere) as trap:
        raw = f"HTTP/1.1 307 Moved\r\nLocation: {trap}/steal\r\nContent-Length: 0\r\n\r\n".encode()
        async with serving(replying(raw)) as url:
            reply = await send(wire, url)
    assert (reply.status, reply.headers["location"]) == (307, f"{trap}/steal")
    assert visited == []


@pytest.mark.fault(35)
async def test_does_not_inflate_a_compressed_reply(wire: HttpTransport) -> None:
    bomb = gzip.compress(bytes(20_000_000))
    raw = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(bomb), bomb)
    async with serving(replying(raw)) as url:
        reply = await send(wire, url, max_reply_bytes=len(bomb))
    assert reply.body == bomb


async def test_refuses_a_second_event_loop(wire: HttpTransport) -> None:
    async with serving(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as url:
        await send(wire, url)
        with pytest.raises(RuntimeError, match="event loop of its first call"):
            await asyncio.to_thread(asyncio.run, send(wire, url))


# --- Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.fault(30)
async def test_the_deadline_is_total_against_a_slow_drip(wire: HttpTransport) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(drip) as url:
        started_s = time.monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            await send(wire, url, timeout_s=0.3)
        assert 0.25 < time.monotonic() - started_s < 1.3
    assert caught.value.sent


@pytest.mark.fault(29)
async def test_a_silent_upstream_counts_as_sent(wire: HttpTransport) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await asyncio.Event().wait()

    async with serving(silent) as url:
        with pytest.raises(UpstreamTimeout) as caught:
            await send(wire, url, timeout_s=0.5)  # longer than the connect timeout: the connection did succeed
    assert caught.value.sent


@pytest.mark.fault(29)
async def test_a_connect_that_never_ends_is_cut_and_was_not_sent(wire: HttpTransport) -> None:
    with deaf_port() as port, pytest.raises(UpstreamTimeout) as caught:
        await send(wire, f"http://127.0.0.1:{port}")
    assert not caught.value.sent


async def test_no_time_left_is_not_sent(wire: HttpTransport) -> None:
    with pytest.raises(UpstreamTimeout) as caught:
        await send(wire, "http://127.0.0.1:9", timeout_s=0.0)
    assert not caught.value.sent


@pytest.mark.fault(36)
async def test_a_flood_of_interim_replies_ends_at_the_deadline(wire: HttpTransport) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
            await writer.drain()

    async with serving(flood) as url:
        with pytest.raises(UpstreamTimeout) as caught:
            await asyncio.wait_for(send(wire, url, timeout_s=0.3), PATIENCE_S)
    assert caught.value.sent


async def test_many_calls_at_once_never_wait_for_a_connection() -> None:
    """More calls than the old pool of 256, on a server that is slow to answer and quick to connect."""
    calls = 300
    arrived = 0
    all_arrived = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await read_request(reader)
        arrived += 1
        if arrived == calls:
            all_arrived.set()
        await all_arrived.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    wire = HttpTransport()
    async with serving(slow) as url:
        replies = await asyncio.gather(*(send(wire, url) for _ in range(calls)))
    assert [reply.body for reply in replies] == [b"ok"] * calls
    await wire.close()


async def test_cancelling_drops_the_connection_and_the_wire_still_works(wire: HttpTransport) -> None:
    arrived, dropped = asyncio.Event(), asyncio.Event()

    async def silent_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if arrived.is_set():
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
            return
        arrived.set()
        assert await reader.read() == b""
        dropped.set()

    async with serving(silent_once) as url:
        call = asyncio.create_task(send(wire, url))
        await asyncio.wait_for(arrived.wait(), PATIENCE_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(dropped.wait(), PATIENCE_S)
        assert (await send(wire, url)).body == b"ok"


async def test_cancelling_in_the_middle_of_a_body_drops_the_connection(wire: HttpTransport) -> None:
    started, dropped = asyncio.Event(), asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"2710\r\n" + bytes(10_000) + b"\r\n")
                await writer.drain()
                started.set()
        except ConnectionError:
            dropped.set()

    async with serving(endless) as url:
        call = asyncio.create_task(send(wire, url, max_reply_bytes=10**12))
        await asyncio.wait_for(started.wait(), PATIENCE_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(dropped.wait(), PATIENCE_S)


# --- Size -------------------------------------------------------------------------------------------------------------


@pytest.mark.fault(35)
async def test_refuses_a_reply_by_its_announced_length(wire: HttpTransport) -> None:
    dropped = asyncio.Event()

    async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n" + bytes(20_000))
        assert await reader.read() == b""  # the rest is never sent, so only the announcement can have been refused
        dropped.set()

    async with serving(large) as url:
        with pytest.raises(UpstreamProtocolError, match="announces 200000000 bytes"):
            await send(wire, url, max_reply_bytes=10_000)
        await asyncio.wait_for(dropped.wait(), PATIENCE_S)


@pytest.mark.fault(35)
async def test_refuses_an_endless_chunked_reply(wire: HttpTransport) -> None:
    dropped = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"2710\r\n" + bytes(10_000) + b"\r\n")
                await writer.drain()
        except ConnectionError:
            dropped.set()

    async with serving(endless) as url:
        with pytest.raises(UpstreamProtocolError, match="longer than 5000000 bytes"):
            await send(wire, url, max_reply_bytes=5_000_000)
        await asyncio.wait_for(dropped.wait(), PATIENCE_S)


# --- Broken transport -------------------------------------------------------------------------------------------------


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
    ],
    ids=["content-length", "chunked"],
)
async def test_a_truncated_reply_is_no_reply(wire: HttpTransport, raw: bytes) -> None:
    async with serving(replying_once(raw)) as url:
        with pytest.raises(UpstreamUnavailable) as caught:
            await send(wire, url)
    assert caught.value.sent


async def test_an_answer_that_is_not_http(wire: HttpTransport) -> None:
    async with serving(replying_once(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as url:
        with pytest.raises(UpstreamProtocolError) as caught:
            await send(wire, url)
    assert caught.value.sent


async def test_a_refused_connection_was_not_sent(wire: HttpTransport) -> None:
    with closing(socket.socket()) as taken:  # bound but not listening: connecting is refused, and no one else gets it
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UpstreamUnavailable) as caught:
            await send(wire, f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert not caught.value.sent


async def test_an_unknown_host_was_not_sent(wire: HttpTransport) -> None:
    with pytest.raises(UpstreamUnavailable) as caught:
        await send(wire, "http://no-such-host.invalid")
    assert not caught.value.sent


async def test_an_idle_connection_closed_by_the_upstream_is_replaced(wire: HttpTransport) -> None:
    noticed = asyncio.Event()
    connections = 0

    async def closing_politely(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.write_eof()
        assert await reader.read() == b""  # the client has let the connection go
        noticed.set()

    async with serving(closing_politely) as url:
        await send(wire, url)
        await asyncio.wait_for(noticed.wait(), PATIENCE_S)
        assert (await send(wire, url)).body == b"ok"
    assert connections == 2


async def test_a_request_that_was_read_is_never_sent_again(wire: HttpTransport) -> None:
    bodies: list[bytes] = []

    async def dropping_the_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append((await read_request(reader))[1])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        bodies.append((await read_request(reader))[1])

    async with serving(dropping_the_second) as url:
        await send(wire, url)
        with pytest.raises(UpstreamUnavailable) as caught:
            await send(wire, url)
    assert caught.value.sent
    assert len(bodies) == 2


@pytest.mark.fault(36)
async def test_bytes_after_a_reply_are_not_taken_for_the_next_reply(wire: HttpTransport) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with serving(replying(raw)) as url:
        for _ in range(3):
            assert (await send(wire, url)).body == b"ok"


# --- Secrets, misuse and processes ------------------------------------------------------------------------------------


async def test_faults_name_neither_credentials_nor_query(wire: HttpTransport) -> None:
    async with serving(replying_once(b"")) as url:
        secret_url = url.replace("http://", "http://user:s3cret@") + "/?key=s3cret"
        bad_header = post(url, {"authorization": "Bearer s3cret\n"})
        for request in (post(secret_url), post("ftp://user:s3cret@host/?key=s3cret"), bad_header):
            with pytest.raises((UpstreamUnavailable, UpstreamProtocolError)) as caught:
                await wire.send(request, timeout_s=PATIENCE_S, max_reply_bytes=10)
            assert "s3cret" not in str(caught.value)
            assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize("url", ["/relative", "http://", "ftp://host/", "http://[::1"])
async def test_a_url_that_cannot_be_called_was_not_sent(wire: HttpTransport, url: str) -> None:
    with pytest.raises(UpstreamProtocolError) as caught:
        await send(wire, url)
    assert not caught.value.sent


@pytest.mark.parametrize("used_before", [False, True])
async def test_a_closed_wire_sends_nothing(wire: HttpTransport, used_before: bool) -> None:
    if used_before:
        async with serving(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as url:
            await send(wire, url)
    await wire.close()
    await wire.close()
    with pytest.raises(UpstreamUnavailable) as caught:
        await send(wire, "http://127.0.0.1:9")
    assert not caught.value.sent


async def test_closing_ends_the_calls_in_flight(wire: HttpTransport) -> None:
    arrived = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        arrived.set()
        await asyncio.Event().wait()

    async with serving(silent) as url:
        call = asyncio.create_task(send(wire, url))
        await asyncio.wait_for(arrived.wait(), PATIENCE_S)
        await wire.close()
        with pytest.raises(UpstreamUnavailable) as caught:
            await asyncio.wait_for(call, PATIENCE_S)
    assert caught.value.sent


CALL = """
import asyncio, os, sys
from engine.upstream.http import HttpTransport
from providers.base import UpstreamRequest
wire = HttpTransport()
async def call():
    request = UpstreamRequest("POST", os.environ["UPSTREAM_URL"], {}, b"{}")
    return (await wire.send(request, timeout_s=5, max_reply_bytes=100)).body
print(asyncio.run(call()).decode(), flush=True)
"""

CALL_AFTER_FORK = (
    CALL
    + """
child = os.fork()
if child == 0:
    try:
        asyncio.run(asyncio.wait_for(call(), 3))
    except RuntimeError as error:
        os._exit(42 if "needs a transport of its own" in str(error) else 1)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
)


async def test_ignores_the_proxies_of_the_environment() -> None:
    async with serving(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as url:
        dead_proxy = "http://127.0.0.1:9"
        done = await asyncio.to_thread(
            run_python, CALL, UPSTREAM_URL=url, HTTP_PROXY=dead_proxy, http_proxy=dead_proxy, ALL_PROXY=dead_proxy
        )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


async def test_a_wire_inherited_through_fork_refuses_instead_of_hanging() -> None:
    async with serving(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as url:
        done = await asyncio.to_thread(run_python, CALL_AFTER_FORK, UPSTREAM_URL=url)
    assert done.returncode == 42, done.stderr
