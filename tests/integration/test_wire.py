"""The wire against small local servers: good replies whole and exact, misuse, secrets and processes."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from engine.upstream.http import HttpTransport
from models.errors import UpstreamProtocolError, UpstreamUnavailable
from providers.base import UpstreamReply, UpstreamRequest
from tests.integration.wire_servers import (
    CALL,
    PATIENCE_S,
    post,
    read_request,
    replying,
    replying_once,
    run_python,
    send,
    serving,
)

pytestmark = pytest.mark.asyncio


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
