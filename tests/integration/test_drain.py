"""SIGTERM: requests are served while load balancers find out, and a second signal ends the process at once."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.api_process import HEALTH, ApiProcess, Reply, free_port
from tests.waiting import wait_until

END_S = 60.0


def readiness(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as reply:
            return reply.status, json.loads(reply.read())["status"]
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())["status"]


def test_a_drain_serves_says_so_and_ends(migrated: Path, tmp_path: Path) -> None:
    with ApiProcess(migrated, tmp_path, drain_s=4) as api, api.connect() as kept:
        kept.sendall(HEALTH)
        assert not Reply(kept).is_last
        signalled_at = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        wait_until(lambda: readiness(api.url) == (503, "draining"), END_S)
        kept.sendall(HEALTH)
        reply = Reply(kept)
        assert reply.status == 200 and reply.is_last, "served, and asked to go elsewhere next time"
        assert api.answers(), "new connections are served too"
        assert api.process.wait(END_S) == 0
        assert time.monotonic() - signalled_at >= 4
    assert '"message":"stopped"' in api.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_requests_too(migrated: Path, tmp_path: Path, second: signal.Signals) -> None:
    with ApiProcess(migrated, tmp_path, drain_s=3600) as api, api.connect() as slow:
        slow.sendall(api.head("POST", "/v1/embeddings", "Content-Type: application/json", "Content-Length: 100") + b"{")
        api.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in api.log, END_S)
        assert api.answers()
        api.process.send_signal(second)
        assert api.process.wait(END_S) == 0


def test_ctrl_c_skips_the_drain(migrated: Path, tmp_path: Path) -> None:
    with ApiProcess(migrated, tmp_path, drain_s=3600) as api:
        api.process.send_signal(signal.SIGINT)
        assert api.process.wait(END_S) == 0


def test_operations_have_their_own_port(migrated: Path, tmp_path: Path) -> None:
    port = free_port()
    api = ApiProcess(migrated, tmp_path, ops_port=port)
    api.health_url = f"http://127.0.0.1:{port}"
    with api:
        assert not api.answers("/healthz") and not api.answers("/metrics") and api.answers("/openapi.json")
        assert readiness(api.health_url)[0] == 503
        for path, status in (("/metrics", 200), ("/v1/models", 404), ("/docs", 404)):
            try:
                assert urllib.request.urlopen(api.health_url + path, timeout=10).status == status
            except urllib.error.HTTPError as refused:
                assert refused.code == status
