"""What a connection may do to the API before and beside a request: bare sockets against a process of its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.api_process import BODY, HEALTH, ApiProcess, Reply, flood, is_closed
from tests.waiting import wait_until

LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def api(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(migrated, tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "after another request"])
@pytest.mark.parametrize(
    ("start", "piece", "status", "code"),
    [
        (b"GET /healthz HTTP/1.1\r\nX: ", b"x" * 32_768, 431, "headers_too_large"),
        (b"GET /healthz HTTP/1.1\r\n", b"X: " + b"x" * 8_000 + b"\r\n", 431, "headers_too_large"),
        (b"GET /healthz HTTP/1.1\r\n", b"a:b\r\n" * 2_000, 431, "headers_too_large"),
        (b"GET /healthz HTTP/1.1\r\n", b"x" * 32_768, 431, "headers_too_large"),  # a name without an end
        (b"GET /", b"x" * 32_768, 414, "url_too_long"),
        (b"GET /?", b"x" * 1_000, 414, "url_too_long"),
        (b"", b"\r\n" * 30_000, 431, "headers_too_large"),
    ],
    ids=["one header", "many headers", "tiny headers", "a name", "a path", "a query", "blank lines"],
)
def test_a_head_without_an_end_is_refused(
    api: ApiProcess, before: bytes, start: bytes, piece: bytes, status: int, code: str
) -> None:
    with api.connect() as connection:
        if before:
            connection.sendall(before)
            assert Reply(connection).status == 200
        connection.sendall(start)
        flood(connection, piece, 4 * LIMIT)
        reply = Reply(connection)
        assert (reply.status, reply.error["code"]) == (status, code)
        assert reply.is_last and is_closed(connection)


def test_400_mb_of_one_header_cost_neither_time_nor_memory(api: ApiProcess) -> None:
    before = api.rss_bytes()
    with api.connect() as connection, api.connect() as other:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        flood(connection, b"x" * 1_000_000, 400_000_000)
        other.sendall(HEALTH)
        assert Reply(other).status == 200
    assert api.rss_bytes() - before < 32 * 1024 * 1024


@pytest.mark.parametrize("count", [257, 12_000])
def test_more_headers_than_anybody_sends_are_refused(api: ApiProcess, count: int) -> None:
    with api.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + b"a:b\r\n" * count + b"\r\n")
        assert Reply(connection).error["code"] == "headers_too_large"
        assert is_closed(connection)


def test_a_head_within_the_bounds_is_served_in_pieces_too(api: ApiProcess) -> None:
    head = api.head("GET", "/v1/models", "X: " + "x" * 60_000, "Cookie: " + "c" * 3_000)
    with api.connect() as connection:
        for start in range(0, len(head), 7_001):
            connection.sendall(head[start : start + 7_001])
        assert Reply(connection).status == 200
        connection.sendall(head)
        assert Reply(connection).status == 200


CHUNKED = ("Content-Type: application/json", "Transfer-Encoding: chunked")


@pytest.mark.parametrize("keeps_body_open", [True, False])
@pytest.mark.parametrize(
    "piece", [b"X: " + b"x" * 8_000 + b"\r\n", b"x" * 30_000], ids=["many trailers", "one trailer"]
)
def test_trailers_are_bounded(api: ApiProcess, piece: bytes, keeps_body_open: bool) -> None:
    body = b"%x\r\n%b\r\n" % (len(BODY), BODY)
    with api.connect() as connection:
        connection.sendall(api.head("POST", "/v1/embeddings", *CHUNKED) + (b"" if keeps_body_open else body))
        if keeps_body_open:
            connection.sendall(body)
        connection.sendall(b"0\r\n")
        flood(connection, piece, 10 * LIMIT)
        reply = Reply(connection)
        assert (reply.status, reply.error["code"]) == (431, "headers_too_large")
        assert is_closed(connection)


def test_chunk_extensions_are_bounded(api: ApiProcess) -> None:
    with api.connect() as connection:
        connection.sendall(api.head("POST", "/v1/embeddings", *CHUNKED) + b"5;a=")
        flood(connection, b"x" * 30_000, 10 * LIMIT)
        assert Reply(connection).error["code"] == "headers_too_large"
        assert is_closed(connection)


def test_trailers_are_read_and_mean_nothing(api: ApiProcess) -> None:
    body = b"%x;name=value\r\n%b\r\n0\r\nAuthorization: Bearer other\r\nX-Client-Request-Id: trailer\r\n\r\n"
    with api.connect() as connection:
        for _ in range(2):
            connection.sendall(api.head("POST", "/v1/embeddings", *CHUNKED) + body % (len(BODY), BODY))
            assert Reply(connection).status == 200
    assert '"client_request_id":"trailer"' not in api.log


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "another version", "nonsense"],
)
def test_what_is_no_http_gets_the_envelope_too(api: ApiProcess, garbage: bytes) -> None:
    with api.connect() as connection:
        connection.sendall(garbage)
        reply = Reply(connection)
        assert (reply.status, reply.error["code"], reply.is_last) == (400, "malformed_request", True)


# --- An offer to change the protocol ---


def sends(api: ApiProcess, *pieces: bytes) -> Reply:
    with api.connect() as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.01)  # a segment each
        reply = Reply(connection)
        connection.sendall(HEALTH)
        assert Reply(connection).status == 200, "the connection is kept"
        return reply


H2C = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)
OFFERS = {
    "Java, curl": H2C,
    "lower case": tuple(field.lower() for field in H2C),
    "upper case": ("CONNECTION: UPGRADE", "UPGRADE: H2C"),
    "two fields": ("Connection: keep-alive", "Connection: Upgrade", "Upgrade: h2c, something/9"),
    "websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAA", "Sec-WebSocket-Version: 13"),
    "TLS": ("Connection: Upgrade", "Upgrade: TLS/1.0"),
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("cut", [None, 40, 150, -1], ids=["one segment", "early cut", "late cut", "body apart"])
def test_an_offered_protocol_is_ignored_and_the_body_read(
    api: ApiProcess, offer: tuple[str, ...], cut: int | None
) -> None:
    fields = ("Content-Type: application/json", f"Content-Length: {len(BODY)}")
    whole = api.head("POST", "/v1/embeddings", *offer, *fields) + BODY
    place = len(whole) - len(BODY) if cut == -1 else cut
    reply = sends(api, whole) if place is None else sends(api, whole[:place], whole[place:])
    assert reply.status == 200, reply.body
    assert len(orjson.loads(reply.body)["data"]) == 2


def test_an_offer_with_an_upload_is_ignored_and_its_lines_are_data(api: ApiProcess) -> None:
    line = b'"Connection: Upgrade, HTTP2-Settings\\r\\nUpgrade: h2c\\r\\n\\r\\n"\n'
    corpus = line * 3 + b'"PRI * HTTP/2.0"\n'
    path = "/v1/embeddings/jobs?model=tiny"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (corpus[:50], corpus[50:])) + b"0\r\n\r\n"
    kind = "Content-Type: application/x-ndjson"
    for fields, body in ((f"Content-Length: {len(corpus)}", corpus), ("Transfer-Encoding: chunked", chunks)):
        for offer in ((), H2C):
            reply = sends(api, api.head("POST", path, kind, fields, *offer), body[:70], body[70:])
            assert reply.status == 202, reply.body
            assert orjson.loads(reply.body)["counts"]["total"] == 4


def test_an_offer_without_a_body_and_a_tunnel(api: ApiProcess) -> None:
    assert sends(api, api.head("GET", "/v1/models", *H2C)).status == 200
    with api.connect() as connection:
        connection.sendall(b"CONNECT provider:443 HTTP/1.1\r\nHost: provider\r\n\r\n")
        assert Reply(connection).error["code"] == "malformed_request"


def test_an_offer_pipelined_with_other_requests(api: ApiProcess) -> None:
    fields = ("Content-Type: application/json", f"Content-Length: {len(BODY)}")
    with api.connect() as connection:
        connection.sendall(HEALTH + api.head("POST", "/v1/embeddings", *H2C, *fields) + BODY + HEALTH)
        assert [Reply(connection).status for _ in range(3)] == [200, 200, 200]


# --- Silence ---


@pytest.fixture(scope="module")
def hasty(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """Its times are short, so that the tests are."""
    settings: dict[str, Any] = {"head_timeout_s": 1.5, "stall_timeout_s": 1.5, "keep_alive_s": 1.5}
    with ApiProcess(migrated, tmp_path_factory.mktemp("hasty"), **settings) as api:
        yield api


def test_a_connection_that_says_nothing_is_closed(hasty: ApiProcess) -> None:
    with hasty.connect() as silent, hasty.connect() as idle:
        idle.sendall(HEALTH)
        assert not Reply(idle).is_last
        assert silent.recv(1) == b"" and idle.recv(1) == b""


@pytest.mark.parametrize("after", [b"", HEALTH], ids=["first", "after another request"])
def test_a_head_that_drips_is_answered_and_closed(hasty: ApiProcess, after: bytes) -> None:
    with hasty.connect() as connection:
        if after:
            connection.sendall(after)
            Reply(connection)
        connection.setblocking(False)
        for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1_000:
            try:
                connection.send(bytes([byte]))
                time.sleep(0.05)
                if connection.recv(1, socket.MSG_PEEK):
                    break
            except BlockingIOError:
                continue
        connection.settimeout(10)
        reply = Reply(connection)
        assert (reply.status, reply.error["code"], reply.is_last) == (408, "request_timeout", True)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/embeddings/jobs?model=tiny"])
@pytest.mark.parametrize("drips", [False, True])
def test_a_body_that_stops_or_drips_is_ended(hasty: ApiProcess, path: str, drips: bool) -> None:
    kind = "application/json" if path == "/v1/embeddings" else "application/x-ndjson"
    with hasty.connect() as connection:
        connection.sendall(hasty.head("POST", path, f"Content-Type: {kind}", "Content-Length: 1000000") + b'"a"\n')
        connection.setblocking(False)
        ends_at = time.monotonic() + 15
        while time.monotonic() < ends_at:
            try:
                if drips:
                    connection.send(b"x")
                time.sleep(0.05)
                if connection.recv(1, socket.MSG_PEEK):
                    break
            except BlockingIOError:
                continue
        connection.settimeout(10)
        assert Reply(connection).error["code"] == "request_timeout"
        assert is_closed(connection)


def test_a_body_that_moves_may_take_its_time(hasty: ApiProcess) -> None:
    texts = [f"{number:0600d}" for number in range(8)]
    body = orjson.dumps({"model": "tiny", "input": texts})
    with hasty.connect() as connection:
        fields = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        connection.sendall(hasty.head("POST", "/v1/embeddings", *fields))
        for start in range(0, len(body), 600):
            connection.sendall(body[start : start + 600])
            time.sleep(0.1)
            connection.settimeout(30)
        reply = Reply(connection)
        assert reply.status == 200, reply.body


# --- Numbers ---


def test_1400_silent_connections_leave_room_for_a_caller(migrated: Path, tmp_path: Path) -> None:
    api = ApiProcess(migrated, tmp_path)
    api.max_descriptors = (1024, 1024)  # as most systems start a process, and no more to be had
    with api, ExitStack() as stack:
        served = 0
        for number in range(1_400):
            stack.enter_context(api.connect())
            if number % 200 == 199:
                with api.connect() as caller:
                    fields = ("Content-Type: application/json", f"Content-Length: {len(BODY)}")
                    caller.sendall(api.head("POST", "/v1/embeddings", *fields) + BODY)
                    served += Reply(caller).status == 200
        assert served == 7
        wait_until(lambda: "(evicted)" in api.log, 5)
        figures = metrics(api)
        assert figures['embedmill_connections_closed_total{reason="evicted"}'] > 500
        assert figures["embedmill_connections"] <= 1024 - 400


def test_the_soft_limit_on_descriptors_is_raised(migrated: Path, tmp_path: Path) -> None:
    api = ApiProcess(migrated, tmp_path)
    api.max_descriptors = (256, 2048)
    with api:
        limits = Path(f"/proc/{api.process.pid}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
        assert line.split()[3:5] == ["2048", "2048"]


def test_one_address_has_its_share_and_the_proxy_is_no_address(migrated: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "max_connections": 40,
        "max_connections_per_address": 5,
        "trusted_proxies": "10.0.0.0/8",
    }
    with ApiProcess(migrated, tmp_path, **settings) as api, ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(api.connect())
            connection.sendall(HEALTH)
            assert Reply(connection).status == 200
        refused = Reply(stack.enter_context(api.connect()))
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        wait_until(lambda: "(address_share)" in api.log, 5)


def test_a_full_table_refuses_when_every_connection_is_in_use(migrated: Path, tmp_path: Path) -> None:
    with ApiProcess(migrated, tmp_path, max_connections=8) as api, ExitStack() as stack:
        fields = ("Content-Type: application/json", "Content-Length: 10000")
        for _ in range(8):
            stack.enter_context(api.connect()).sendall(api.head("POST", "/v1/embeddings", *fields) + b"{")

        def refusal() -> Reply | None:
            with api.connect() as connection:
                connection.sendall(b"")
                return Reply(connection) if connection.recv(1, socket.MSG_PEEK) else None

        reply = refusal()
        assert reply is not None and (reply.status, reply.error["code"]) == (503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1


def metrics(api: ApiProcess) -> dict[str, float]:
    with api.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n")
        text = Reply(connection).body.decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}
