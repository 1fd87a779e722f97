"""Each piece says what it does, where, and in which version; `up` says it line by line as it starts them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from cli.up.start import broker_urls
from engine.config.settings import Settings
from tests.system.stack import Stack
from tests.system.test_up import READY_S, STOP_S, Up
from tests.waiting import wait_until

VERSION = version("embedmill")


def test_up_prints_a_line_for_each_part_before_it_starts_it(tmp_path: Path) -> None:
    up = Up(tmp_path, "--workers", "1")
    try:
        wait_until(lambda: "broker" in up.stderr.read_text(), READY_S, what="the first line")
        wait_until(up.ready, READY_S, what="readiness")
        lines = [line for line in up.stderr.read_text().splitlines() if not line.startswith("{")]
        said = {line.split()[0]: line for line in lines}
        parts = ["broker", "migrations", "api", "scheduler", "worker", "waiting"]
        assert [line.split()[0] for line in lines if line.split()[0] in parts] == parts
        assert "embedded Valkey at 127.0.0.1:" in said["broker"] and "embedmill.db" in said["migrations"]
        assert up.url in said["api"] and "1 processes" in said["worker"]
        assert all(VERSION in said[part] for part in ("api", "scheduler", "worker"))
        assert "Traceback" not in up.stderr.read_text()
    finally:
        up.process.terminate()
        up.process.wait(timeout=STOP_S)


def test_the_pieces_say_what_they_do(sqlite_stack: Stack) -> None:
    log_of = sqlite_stack.processes.log_of
    assert f"embedmill {VERSION} listens on 127.0.0.1, port" in log_of("api")
    assert f"embedmill {VERSION}: a worker of 2 processes hears 127.0.0.1" in log_of("worker").replace("redis://", "")
    assert f"embedmill {VERSION}: the scheduler dispatches every" in log_of("scheduler")
    secret = sqlite_stack.broker_url.partition("@")[0].rpartition(":")[2]
    assert not any(secret in log_of(name) for name in ("api", "worker", "scheduler"))


def test_passwords_of_brokers_are_not_shown(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, redis_url="redis://:secret@redis.internal:6379/0", broker_url="amqp://u:secret@mq.internal/v"
    )
    assert broker_urls(settings) == "amqp://u:***@mq.internal/v and redis://:***@redis.internal:6379/0"
