"""The wire and time: deadlines that are total, and what a cancelled call leaves."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.upstream.http import HttpTransport
from models.errors import UpstreamTimeout
from tests.integration.wire_servers import (
    PATIENCE_S,
    deaf_port,
    read_request,
    send,
    serving,
)

pytestmark = pytest.mark.asyncio


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
