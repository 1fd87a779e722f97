"""An answer on its way to the socket: few writes, and nothing that HTTP does not allow."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from api.http.exchange import MAX_COPIED_BYTES, Exchange
from api.http.request_body import IS_CUT_OFF

LENGTH_4 = [(b"Content-Length", b"4"), (b"x-request-id", b"req_1")]
HEAD_4 = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-request-id: req_1\r\n\r\n"


class Transport:
    """Keeps each write by itself."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))

    def writelines(self, parts: Any) -> None:
        self.writes.append(b"".join(parts))

    def close(self) -> None:
        self.is_closed = True


def exchange_with(transport: Transport, method: str = "GET", *, keep_alive: bool = True) -> Exchange:
    log = logging.getLogger("tests")
    scope: Any = {"type": "http", "method": method, "headers": []}
    exchange = Exchange(
        scope=scope,
        transport=transport,  # type: ignore[arg-type]
        flow=FlowControl(transport),  # type: ignore[arg-type]
        logger=log,
        access_logger=log,
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )
    scope[IS_CUT_OFF] = exchange.is_cut_off
    return exchange


def start(headers: Any, status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: Any, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def answer(transport: Transport, *messages: dict[str, Any], **options: Any) -> Exchange:
    exchange = exchange_with(transport, **options)
    for message in messages:
        await exchange.send(message)
    return exchange


async def test_a_short_answer_is_one_write() -> None:
    transport = Transport()
    exchange = await answer(transport, start(LENGTH_4), body(b"body"))
    assert transport.writes == [HEAD_4 + b"body"]
    assert exchange.response_complete and not transport.is_closed


async def test_a_client_of_http_1_0_gets_no_chunks() -> None:
    transport = Transport()
    exchange = exchange_with(transport)
    exchange.scope["http_version"] = "1.0"
    for message in (start([(b"x", b"y")]), body(b"one", more=True), body(b"two")):
        await exchange.send(message)
    assert b"".join(transport.writes) == b"HTTP/1.1 200 OK\r\nx: y\r\nconnection: close\r\n\r\nonetwo"
    assert exchange.response_complete and transport.is_closed


async def test_a_long_body_is_whole_behind_its_head() -> None:
    transport, data = Transport(), memoryview(b"x" * (MAX_COPIED_BYTES + 1))
    await answer(
        transport, start([(b"content-length", b"%d" % len(data))]), body(data[:70], more=True), body(data[70:])
    )
    head, _, rest = b"".join(transport.writes).partition(b"\r\n\r\n")
    assert head.endswith(b"content-length: %d" % len(data)) and rest == bytes(data)


async def test_the_head_of_a_stream_does_not_wait_for_its_first_chunk() -> None:
    transport = Transport()
    exchange = await answer(transport, start([]))
    assert transport.writes == [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
    await exchange.send(body(b"abc", more=True))
    await exchange.send(body(b""))
    assert transport.writes[1:] == [b"3\r\nabc\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize(("status", "method"), [(204, "GET"), (304, "GET"), (200, "HEAD")])
async def test_an_answer_without_a_body_is_its_head(status: int, method: str) -> None:
    transport = Transport()
    exchange = await answer(transport, start([(b"etag", b'"1"')], status), body(b""), method=method)
    assert len(transport.writes) == 1 and transport.writes[0].endswith(b'\r\netag: "1"\r\n\r\n')
    assert exchange.response_complete


async def test_the_last_answer_of_a_connection_says_so_and_closes_it() -> None:
    transport = Transport()
    await answer(transport, start(LENGTH_4), body(b"body"), keep_alive=False)
    assert b"\r\nconnection: close\r\n" in transport.writes[0] and transport.is_closed


@pytest.mark.parametrize(
    "messages",
    [
        [body(b"body")],
        [start([(b"a b", b"1")])],
        [start([(b"a", b"1\r\nb: 2")])],
        [start(LENGTH_4), start(LENGTH_4)],
        [start(LENGTH_4), body(b"bodies")],
        [start(LENGTH_4), body(b"bod")],
        [start(LENGTH_4), body(b"body"), body(b"body")],
    ],
    ids=["no head", "name", "value", "two heads", "too long", "too short", "after the end"],
)
async def test_what_is_no_answer_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError):
        await answer(Transport(), *messages)


async def test_nothing_is_written_for_a_client_that_has_gone() -> None:
    transport = Transport()
    exchange = exchange_with(transport)
    exchange.disconnected = True
    assert exchange.is_cut_off()
    await exchange.send(start(LENGTH_4))
    assert transport.writes == []


async def test_a_request_leaves_nothing_for_the_garbage_collector() -> None:
    exchange = await answer(Transport(), start(LENGTH_4), body(b"body"))
    alive = weakref.ref(exchange)
    gc.disable()
    try:
        del exchange
        assert alive() is None
    finally:
        gc.enable()
