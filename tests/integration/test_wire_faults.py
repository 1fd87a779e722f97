"""The wire against replies that are too long, cut off, not HTTP or not its own, and servers that are not there."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

import pytest

from engine.upstream.http import HttpTransport
from models.errors import UpstreamProtocolError, UpstreamUnavailable
from tests.integration.wire_servers import (
    PATIENCE_S,
    read_request,
    replying,
    replying_once,
    send,
    serving,
)

pytestmark = pytest.mark.asyncio


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
