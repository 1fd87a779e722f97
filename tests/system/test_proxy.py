"""The fault proxy by itself: each toxic, each direction, switched on and off while a connection is open."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.system.proxy import Proxy
from tests.waiting import wait_until

BRIEF_S = 0.15
LONG_S = 10.0


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture(scope="module")
def echo_port() -> Iterator[int]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def proxy(echo_port: int) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", echo_port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as client:
        assert echoed(client, b"hello") == b"hello"
        yield client


def echoed(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return received(client, len(data))


def received(client: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer when the other side has ended."""
    parts = bytearray()
    while len(parts) < count and (data := client.recv(count - len(parts))):
        parts += data
    return bytes(parts)


def timed(client: socket.socket, data: bytes) -> float:
    started = time.monotonic()
    assert echoed(client, data) == data
    return time.monotonic() - started


def test_without_toxics_every_byte_passes(client: socket.socket) -> None:
    data = bytes(range(256)) * 4096
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert received(client, len(data)) == data
    sender.join()


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_latency_comes_and_goes(proxy: Proxy, client: socket.socket, direction: str) -> None:
    toxics = getattr(proxy, direction)
    toxics.latency_s = BRIEF_S
    assert timed(client, b"late") >= BRIEF_S
    toxics.clear()
    assert timed(client, b"soon") < BRIEF_S


def test_jitter_never_lets_bytes_overtake(proxy: Proxy, client: socket.socket) -> None:
    proxy.to_server.jitter_s = 0.01
    for number in range(30):
        client.sendall(b"%03d" % number)
    assert received(client, 90) == b"".join(b"%03d" % number for number in range(30))


def test_slow_takes_as_long_as_its_rate_says(proxy: Proxy, client: socket.socket) -> None:
    proxy.to_client.bytes_per_s, proxy.to_client.slice_bytes = 2000.0, 50
    assert timed(client, b"x" * 400) >= 400 / 2000.0 * 0.8


def test_limit_data_ends_the_connection_after_so_many_bytes(proxy: Proxy, client: socket.socket) -> None:
    proxy.to_client.limit_bytes = 5 + 7  # "hello" has passed already
    client.sendall(b"0123456789")
    assert received(client, 10) == b"0123456"
    assert client.recv(10) == b""


def test_timeout_keeps_the_connection_and_passes_nothing(proxy: Proxy, client: socket.socket) -> None:
    proxy.to_server.timeout = True
    client.settimeout(BRIEF_S)
    client.sendall(b"hole")
    with pytest.raises(TimeoutError):
        client.recv(4)
    client.settimeout(LONG_S)
    proxy.to_server.timeout = False
    assert received(client, 4) == b"hole"


def test_stall_is_for_the_connections_of_now(proxy: Proxy, client: socket.socket) -> None:
    assert proxy.stall() == 1
    client.settimeout(BRIEF_S)
    client.sendall(b"hole")
    with pytest.raises(TimeoutError):
        client.recv(4)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as another:
        assert echoed(another, b"works") == b"works"
    proxy.down()  # does not wait for what will never pass
    assert proxy.connections == 0


def test_reset_is_a_reset_and_the_next_connection_works(proxy: Proxy, client: socket.socket) -> None:
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as again:
        assert echoed(again, b"again") == b"again"


def test_down_refuses_until_up(proxy: Proxy, client: socket.socket) -> None:
    proxy.down()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S)
    proxy.up()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as again:
        assert echoed(again, b"again") == b"again"


@pytest.mark.parametrize("passing", [False, True])
def test_reset_on_what_passes_by_happens_once(proxy: Proxy, client: socket.socket, passing: bool) -> None:
    proxy.to_server.reset_on, proxy.to_server.reset_after_passing = b"COMMIT", passing
    client.sendall(b"Q COMMIT")
    with pytest.raises(ConnectionResetError):
        while client.recv(10):
            pass
    assert proxy.to_server.resets == 1
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as again:
        assert echoed(again, b"Q COMMIT") == b"Q COMMIT"


def test_a_server_that_is_away_is_a_reset(echo_port: int) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Proxy("127.0.0.1", unused.getsockname()[1]) as proxy:
            with socket.socket() as client, pytest.raises(ConnectionResetError):
                client.settimeout(LONG_S)
                client.connect(("127.0.0.1", proxy.port))  # told here already, where the proxy is quick
                client.recv(1)
            wait_until(lambda: proxy.connections == 0, LONG_S)


class Flood(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):
            self.request.sendall(bytes(256 * 1024 * 1024))


def test_a_client_that_goes_in_the_middle_of_a_flood_leaves_no_connection() -> None:
    with EchoServer(("127.0.0.1", 0), Flood) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Proxy("127.0.0.1", server.server_address[1]) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as client:
                assert received(client, 100_000)
            wait_until(lambda: proxy.connections == 0, LONG_S, what="the end of the connection")
        server.shutdown()
