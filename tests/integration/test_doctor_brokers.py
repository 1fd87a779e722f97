"""The doctor names what answers in a broker's place, and never takes long for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.commands.doctor.brokers import find_broker_fault
from cli.commands.doctor.check_runner import run_check, run_checks
from cli.commands.doctor.finding import Finding
from engine.connections.urls import redis_or_broker

QUICK_S = 9.0
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"


@contextmanager
def server(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """Answers what it is sent; with b"" it keeps the connection, and silence. The port."""
    kept: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
                kept.append(connection)
                if said := answer(connection.recv(512)):
                    connection.sendall(said)
                    connection.close()
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
    for connection in kept:
        connection.close()


def timed(url: str) -> tuple[str, str]:
    began = time.monotonic()
    fault = find_broker_fault(url)
    assert time.monotonic() - began < QUICK_S
    assert fault is not None
    return fault.cause, fault.advice


def test_a_redis_without_tls_is_named(redis_url: str) -> None:
    """It took 37 s, and said "it accepts connections and does not answer"."""
    target = redis_or_broker(redis_url, "EMBEDMILL_REDIS_URL")
    said, fix = timed(f"rediss://{target.host}:{target.port}/0")
    assert said == "the server does not speak TLS" and "write redis:// " in fix


def test_a_rabbitmq_without_tls_is_named(rabbitmq_url: str) -> None:
    """It asked whether it was http:// rather than https://."""
    target = redis_or_broker(rabbitmq_url, "EMBEDMILL_BROKER_URL")
    said, fix = timed(f"amqps://guest:guest@{target.host}:{target.port}//")
    assert said == "the server does not speak TLS" and "write amqp:// " in fix


def test_one_broker_in_the_place_of_the_other(redis_url: str, rabbitmq_url: str) -> None:
    redis, rabbit = (redis_or_broker(url, "EMBEDMILL_BROKER_URL") for url in (redis_url, rabbitmq_url))
    assert timed(f"redis://{rabbit.host}:{rabbit.port}/0")[0] == "it is a RabbitMQ, not a Redis"
    assert timed(f"amqp://{redis.host}:{redis.port}//")[0] == "it is a Redis, not a RabbitMQ"


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_server_that_wants_tls_is_named(scheme: str) -> None:
    with server(lambda _: TLS_ALERT) as port:
        said, fix = timed(f"{scheme}://127.0.0.1:{port}/0")
    assert (said, fix) == ("the server speaks TLS", f"write {scheme}s:// instead of {scheme}://")


@pytest.mark.parametrize("scheme", ["redis", "rediss", "amqp", "amqps"])
def test_a_server_that_says_nothing_is_waited_for_some_seconds(scheme: str) -> None:
    with server(lambda _: b"") as port:
        assert "answer" in timed(f"{scheme}://127.0.0.1:{port}/0")[0]


def test_a_check_that_never_ends_is_a_finding() -> None:
    found = run_check("stuck", lambda: Finding("stuck", "ok", str(threading.Event().wait())), 0.2)
    assert (found.status, found.detail) == ("fail", "it did not answer within 0.2 s") and found.fix
    assert run_checks("good", lambda: [Finding("a", "ok", ""), Finding("b", "ok", "")])[1].check == "b"


def test_a_check_that_breaks_is_a_finding(tmp_path: Path) -> None:
    found = run_check("broken", lambda: Finding("x", "ok", str(1 // 0)))
    assert found.status == "fail" and "ZeroDivisionError" in found.detail
    urls = run_check("broker", lambda: Finding("x", "ok", str(find_broker_fault("redis://h:1/0?sslmode=x"))))
    assert urls.status == "fail" and "sslmode" in urls.detail
