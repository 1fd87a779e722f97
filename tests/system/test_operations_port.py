"""A worker and a scheduler serve health and metrics on a port of their own, and every line they log is JSON."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.conftest import free_port
from tests.services import redis_database
from tests.system.processes import EMBEDMILL, Processes
from tests.waiting import wait_until

START_S = 60.0


@pytest.fixture
def processes(data_dir: Path) -> Iterator[Processes]:
    with redis_database() as redis_url:
        started = Processes(data_dir, {"DATA_DIR": str(data_dir), "REDIS_URL": redis_url, "LOG_FORMAT": "json"})
        try:
            yield started
        finally:
            started.close()


@pytest.mark.parametrize("piece", ["worker", "scheduler"])
def test_health_and_metrics_have_a_port_of_their_own(processes: Processes, data_dir: Path, piece: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    processes.start(piece, [*EMBEDMILL, piece], OPS_PORT=str(port))

    def healthy() -> bool:
        processes.check()
        try:
            return bool(httpx.get(f"{url}/healthz", trust_env=False).json() == {"status": "ok"})
        except httpx.HTTPError:
            return False

    wait_until(healthy, START_S, what=f"health of {url}")
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    assert "embedmill_build_info{" in text
    assert "process_resident_memory_bytes" in text
    assert httpx.get(f"{url}/elsewhere", trust_env=False).status_code == 404
    if piece == "scheduler":
        rounds = 'embedmill_scheduler_rounds_total{duty="sweep",outcome="ok"}'
        wait_until(lambda: rounds in httpx.get(f"{url}/metrics", trust_env=False).text, START_S, what=rounds)
    assert processes.terminate(piece) in (0, -signal.SIGTERM)  # Celery listens to the signal a moment later
    raw = (data_dir / f"{piece}.log").read_text("utf-8").splitlines()
    assert raw and [line for line in raw if not line.startswith("{")] == []
    lines = [json.loads(line) for line in raw]
    assert {line["service"] for line in lines} == {piece}
    assert all({"at", "level", "message", "version", "pid"} <= set(line) for line in lines)


def test_a_port_that_is_taken_is_named(processes: Processes, data_dir: Path) -> None:
    port = free_port()
    processes.start("worker", [*EMBEDMILL, "worker"], OPS_PORT=str(port))
    wait_until(lambda: f"port {port}" in (data_dir / "worker.log").read_text("utf-8"), START_S)
    processes.start("scheduler", [*EMBEDMILL, "scheduler"], OPS_PORT=str(port))
    wait_until(lambda: processes.has_ended("scheduler"), START_S)
    assert "EMBEDMILL_OPS_PORT" in (data_dir / "scheduler.log").read_text("utf-8")
