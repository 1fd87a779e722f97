"""What machines ask that look after machines, and what becomes of callers who hang up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.queue import worker_heartbeats
from tests.gateway import CONFIG, JOBS, Gateway, close_gateway, open_gateway
from tests.waiting import until

SLOW = CONFIG.replace('kind = "fake"', 'kind = "fake"\nlatency_ms = 30_000')


async def test_the_process_lives(gateway: Gateway) -> None:
    reply = await gateway.client.get("/healthz", headers={"authorization": ""})
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


async def test_ready_means_database_broker_and_workers(gateway: Gateway) -> None:
    reply = await gateway.client.get("/readyz", headers={"authorization": ""})
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
    assert reply.json() == {
        "status": "not_ready",
        "database": "ok",
        "broker": "unavailable",
        "workers": "unavailable",
    }
    await worker_heartbeats.heartbeat(gateway.runtime.database, "worker-1", 2)

    async def sees_the_worker() -> bool:
        return bool((await gateway.client.get("/readyz")).json()["workers"] == "ok")

    await until(sees_the_worker, every_s=0.05, what="/readyz that counts the worker")


async def test_metrics_count_and_tell_no_secrets(gateway: Gateway) -> None:
    await gateway.embed("a private text", user="a private user")
    await gateway.submit(["a private text"], metadata={"private": "private"})
    text = (await gateway.client.get("/metrics", headers={"authorization": ""})).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert "private" not in text and gateway.key not in text
    routes = {sample.labels["route"] for sample in families["embedmill_requests"].samples if "route" in sample.labels}
    assert "/v1/embeddings" in routes and "/v1/embeddings/jobs" in routes
    states = {sample.labels["state"]: sample.value for sample in families["embedmill_shards"].samples}
    assert sum(states.values()) >= 1
    assert {"embedmill_event_loop_lag_seconds", "embedmill_jobs", "embedmill_oldest_lease_seconds"} <= set(families)


async def test_paths_of_callers_are_no_labels(gateway: Gateway) -> None:
    await gateway.client.get("/v1/made-up-by-a-caller")
    await gateway.client.get("/v1/models/made-up-by-a-caller")
    assert "made-up-by-a-caller" not in (await gateway.client.get("/metrics")).text


async def call(
    gateway: Gateway, body: bytes, gone: asyncio.Event, path: str = "/v1/embeddings", *, unfinished: bool = False
) -> list[dict[str, Any]]:
    """One POST over bare ASGI, whose client hangs up when told, or with half of its body unsent: what it was sent."""
    sent: list[dict[str, Any]] = []
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": unfinished}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    kind = "application/x-ndjson" if path == JOBS else "application/json"
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": kind}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"model=tiny" if path == JOBS else b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
    }
    await gateway.app(scope, receive, send)
    return sent


async def test_a_caller_who_hangs_up_takes_the_upstream_calls_along(data_dir: Path) -> None:
    gateway = await open_gateway(data_dir, config=SLOW)
    gone = asyncio.Event()
    body = orjson.dumps({"model": "short", "input": [str(i) for i in range(50)]})
    calling = asyncio.create_task(call(gateway, body, gone))
    upstream = gateway.runtime.upstream
    await until(lambda: upstream.in_flight)
    gone.set()
    async with asyncio.timeout(10):
        sent = await calling
    assert sent[0]["status"] == 499 and upstream.in_flight == 0
    await close_gateway(gateway)


@pytest.mark.parametrize("path", ["/v1/embeddings", JOBS])
async def test_hanging_up_in_the_middle_of_a_body_is_nobodys_error(
    gateway: Gateway, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    gone = asyncio.Event()
    gone.set()
    sent = await call(gateway, b'"a"\n', gone, path, unfinished=True)
    assert sent[0]["status"] == 499
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert (await gateway.client.get(JOBS)).json()["data"] == []


async def test_a_slow_upstream_meets_the_deadline(data_dir: Path) -> None:
    gateway = await open_gateway(data_dir, config=SLOW, sync_timeout_s=0.2)
    reply = await gateway.embed("a")
    assert reply.status_code == 504 and reply.json()["error"]["type"] == "server_error"
    await close_gateway(gateway)


async def test_readiness_says_which_routes_get_no_calls_and_why(gateway: Gateway) -> None:
    router = gateway.runtime.router
    assert "unused_routes" not in (await gateway.client.get("/readyz")).json()
    router.quarantined = frozenset({("fake", "up", "fake/tiny")})
    router.unverified = {("tiny", "second", "up"): "its vectors are not those of account fake"}
    unused = (await gateway.client.get("/readyz")).json()["unused_routes"]
    assert set(unused) == {"fake up", "second up"} and "drift" in unused["fake up"]
    assert unused["second up"] == "its vectors are not those of account fake"
