"""The edge of the API: methods, slashes, budgets, held polls, what a log line says, and what needs no key."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.access.keys import create_key, revoke_key
from engine.queue import worker_heartbeats
from models.errors import RequestError
from tests.gateway import JOBS, PEPPER, Gateway, close_gateway, error_of, open_gateway
from tests.waiting import until

LIMITS = re.compile(r"x-ratelimit-(limit|remaining|reset)-(requests|tokens)")


# --- HEAD, slashes, hosts ---


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/tiny", JOBS, "/docs"])
async def test_head_is_get_without_a_body(gateway: Gateway, path: str) -> None:
    got, headed = await gateway.client.get(path), await gateway.client.head(path)
    assert headed.status_code == got.status_code and headed.content == b""
    assert headed.headers["content-type"] == got.headers["content-type"]


async def test_head_of_a_job_and_its_results_makes_no_body(gateway: Gateway) -> None:
    job = await gateway.submit(["a", "b"])
    await gateway.run(job["id"])
    for path, header in (("", "etag"), ("/results", "x-embedmill-complete"), ("/results?format=npy", "content-length")):
        reply = await gateway.client.head(f"{JOBS}/{job['id']}{path}")
        assert (reply.status_code, reply.content) == (200, b"") and header in reply.headers
    assert len(gateway.app._app.state.budgets.streams) == 0  # type: ignore[attr-defined]


async def test_head_where_get_is_not(gateway: Gateway) -> None:
    assert (await gateway.client.head("/v1/embeddings")).status_code == 405
    assert (await gateway.client.head("/v1/nothing")).status_code == 404


@pytest.mark.parametrize("path", ["/v1/embeddings/", "//v1/embeddings", "/v1//embeddings", "/v1/embeddings//"])
async def test_a_slash_too_many_is_served_and_never_redirected(gateway: Gateway, path: str) -> None:
    host = {"host": "evil.example", "x-forwarded-host": "evil.example", "x-forwarded-proto": "https"}
    body = {"model": "tiny", "input": "a"}
    for key in (gateway.key, "em_wrong"):
        headers = host | {"authorization": f"Bearer {key}"}
        reply = await gateway.client.post(f"http://gateway{path}", json=body, headers=headers, follow_redirects=False)
        assert reply.status_code == (200 if key == gateway.key else 401)
        assert "location" not in reply.headers and "evil" not in str(reply.headers)


@pytest.mark.parametrize(
    "path", ["/v1/models/", "/healthz/", f"{JOBS}/", "/v1/models/tiny/", "/docs/", "/openapi.json/"]
)
async def test_gets_too(gateway: Gateway, path: str) -> None:
    assert (await gateway.client.get(path)).status_code == 200


async def test_the_location_of_a_job_names_no_host(gateway: Gateway) -> None:
    reply = await gateway.client.post(JOBS, json={"model": "tiny", "input": ["a"]}, headers={"host": "evil.example"})
    assert reply.headers["location"] == f"{JOBS}/{reply.json()['id']}"


@pytest.mark.parametrize(
    "host", ["gateway/healthz?", "gateway/docs?", "gateway/docs#", "gateway/openapi.json?x=", "gateway/metrics;"]
)
async def test_a_host_header_opens_nothing(gateway: Gateway, host: str) -> None:
    # Whoever looks at `request.url` sees the path /healthz here.
    async with httpx.AsyncClient(transport=gateway.transport(), base_url="http://gateway") as stranger:
        for path in ("/v1/models", JOBS):
            reply = await stranger.get(path, headers={"host": host})
            assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")


async def test_a_host_header_changes_no_fingerprint(gateway: Gateway) -> None:
    headers = {"idempotency-key": "one", "content-type": "text/plain"}
    replies = [
        await gateway.client.post(JOBS, params={"model": "tiny"}, content=b"a\n", headers=headers | {"host": host})
        for host in ("gateway", "gateway?x=1")
    ]
    assert [reply.status_code for reply in replies] == [202, 200]


# --- Headers and log lines ---


async def test_every_answer_of_the_sync_route_has_the_rate_limit_headers(gateway: Gateway) -> None:
    bodies: list[dict[str, Any]] = [{"json": {"model": "tiny", "input": "a"}}, {"json": {}}, {"content": b"{"}]
    bodies += [{"json": {"model": "none", "input": "a"}}, {"json": {"model": "tiny", "input": "broken"}}]
    replies = [await gateway.client.post("/v1/embeddings", **body) for body in bodies]
    replies.append(await gateway.client.post("/v1/embeddings", json={}, headers={"authorization": "Bearer em_wrong"}))
    replies.append(await gateway.client.post("/v1/embeddings/", content=b"a", headers={"content-type": "text/plain"}))
    assert {reply.status_code for reply in replies} == {200, 400, 401, 404, 415, 502}
    for reply in replies:
        limits = {name: value for name, value in reply.headers.items() if LIMITS.fullmatch(name)}
        assert len(limits) == 6
        assert all(int(value) > 0 for name, value in limits.items() if "reset" not in name)
        assert all(re.fullmatch(r"(\d+h)?(\d+m)?\d+s", value) for name, value in limits.items() if "reset" in name)
    assert "x-ratelimit-limit-requests" not in (await gateway.client.get("/v1/models")).headers


def details(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    record = [each for each in caplog.records if each.name == "embedmill.requests"][-1]
    return {
        name: getattr(record, name) for name in ("path", "code", "param", "key_id", "project") if name in vars(record)
    }


async def test_the_log_says_what_was_asked_by_whom_and_what_was_wrong(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key_id = gateway.key.split("_")[1]
    await gateway.client.get("/v1/typo/embeddings?text=private")
    assert details(caplog) == {"path": "/v1/typo/embeddings", "code": "not_found", "param": None}
    await gateway.embed(["a", ""])
    assert details(caplog) == {
        "path": "/v1/embeddings", "code": "empty_input", "param": "input[1]", "key_id": key_id, "project": "default"
    }  # fmt: skip
    await gateway.client.post("/v1/embeddings", json={"model": "tiny", "input": "a", "my private\ntext": 1})
    assert details(caplog)["code"] == "unknown_parameter" and details(caplog)["param"] == "…"
    await gateway.client.get(f"/v1/{gateway.key}/%0a{'x' * 5_000}")
    path = details(caplog)["path"]
    assert gateway.key not in path and "\n" not in path and len(path) <= 200
    await gateway.client.get("/v1/models", headers={"authorization": "Bearer em_wrong"})
    assert details(caplog) == {"path": "/v1/models", "code": "invalid_api_key", "param": None}
    assert "private" not in "".join(
        str(vars(record)) for record in caplog.records if record.name == "embedmill.requests"
    )


async def test_the_documentation_loads_nothing_from_elsewhere(gateway: Gateway) -> None:
    page = (await gateway.client.get("/docs", headers={"authorization": ""})).text
    assert "/v1/embeddings/jobs/{job_id}/results" in page and "EmbeddingRequest" in page
    assert not re.search(r'(?:src|href)=(?!"#|"/openapi\.json)', page) and "<script" not in page


# --- Keys ---


@pytest.mark.parametrize("shape", ["em_wrong", "sk-{tail}", "em_{id}_{tail}x", "{key}\x00", "{key}x", "EM_{id}_{tail}"])
async def test_malformed_keys_cost_no_statement(gateway: Gateway, statements: list[str], shape: str) -> None:
    _, key_id, tail = gateway.key.split("_")
    key = shape.format(id=key_id, tail=tail, key=gateway.key)
    for _ in range(50):
        reply = await gateway.client.get("/v1/models", headers={"x-api-key": key, "authorization": f"Bearer {key}"})
        assert error_of(reply)["code"] == "invalid_api_key"
    assert statements == []


async def test_a_refused_key_is_looked_up_once(gateway: Gateway, statements: list[str]) -> None:
    pepper = b"another pepper altogether"
    _, foreign = await create_key(gateway.runtime.database, pepper)
    statements.clear()
    for _ in range(20):
        reply = await gateway.client.get("/v1/models", headers={"authorization": f"Bearer {foreign}"})
        assert reply.status_code == 401
    assert len([each for each in statements if "api_keys" in each]) == 1


async def test_a_key_revoked_while_its_upload_arrives_submits_nothing(gateway: Gateway) -> None:
    key_id, key = await create_key(gateway.runtime.database, PEPPER.encode())
    headers = {"authorization": f"Bearer {key}", "content-type": "application/x-ndjson"}

    async def corpus() -> AsyncIterator[bytes]:
        yield b'"a"\n'
        assert await revoke_key(gateway.runtime.database, key_id)
        yield b'"b"\n'

    reply = await gateway.client.post(JOBS, params={"model": "tiny"}, content=corpus(), headers=headers)
    assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")
    assert [job["status"] for job in (await gateway.client.get(JOBS)).json()["data"]] in ([], ["failed"])


# --- Budgets and long polls ---


@pytest.fixture
async def small(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(
        data_dir, max_polls_per_key=3, max_polls=5, max_streams_per_key=2, max_streams=3, max_calls_per_key=4
    )
    yield gateway
    await close_gateway(gateway)


async def test_held_polls_are_bounded_for_a_key_and_for_all(small: Gateway) -> None:
    job = await small.submit(["a"])
    path = f"{JOBS}/{job['id']}?wait=60"
    others = [await small.another_key(project="default") for _ in range(2)]
    polls = small.app._app.state.budgets.polls  # type: ignore[attr-defined]
    held = [asyncio.create_task(small.client.get(path)) for _ in range(3)]
    await until(lambda: len(polls) == 3)
    refused = await small.client.get(path)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert error_of(refused)["type"] == "requests" and int(refused.headers["retry-after"]) >= 1
    assert (await small.client.get(f"{JOBS}/{job['id']}")).status_code == 200, "a plain poll is served"
    held += [asyncio.create_task(small.client.get(path, headers=others[0])) for _ in range(2)]
    await until(lambda: len(polls) == 5)
    full = await small.client.get(path, headers=others[1])
    assert (full.status_code, error_of(full)["code"]) == (503, "overloaded")
    await small.run(job["id"])
    assert [(await each).json()["status"] for each in held] == ["completed"] * 5
    assert len(polls) == 0
    text = (await small.client.get("/metrics")).text
    assert 'embedmill_budget_refusals_total{budget="long polls",scope="key"}' in text


async def test_many_polls_are_one_statement(gateway: Gateway, statements: list[str]) -> None:
    jobs = [await gateway.submit([name]) for name in "abc"]
    watches = gateway.app._app.state.watches._watches  # type: ignore[attr-defined]
    held = [asyncio.create_task(gateway.client.get(f"{JOBS}/{job['id']}?wait=30")) for job in jobs for _ in range(12)]
    await until(lambda: sum(watch.waiters for watch in watches.values()) == 36)
    statements.clear()
    await until(lambda: len(statements) >= 4)
    assert all(each.startswith("SELECT") and " IN (" in each for each in statements), statements[0]
    for job in jobs:
        await gateway.run(job["id"])
    assert {(await each).json()["status"] for each in held} == {"completed"}


async def test_a_poll_of_a_job_that_is_deleted_ends(gateway: Gateway) -> None:
    job = await gateway.submit(["a"])
    polls = gateway.app._app.state.budgets.polls  # type: ignore[attr-defined]
    poll = asyncio.create_task(gateway.client.get(f"{JOBS}/{job['id']}?wait=60"))
    await until(lambda: len(polls) == 1)
    assert (await gateway.client.delete(f"{JOBS}/{job['id']}")).status_code == 200
    assert (await poll).status_code in (200, 404)


async def test_a_process_that_stops_lets_its_polls_go(gateway: Gateway) -> None:
    job = await gateway.submit(["a"])
    state = gateway.app._app.state  # type: ignore[attr-defined]
    poll = asyncio.create_task(gateway.client.get(f"{JOBS}/{job['id']}?wait=60"))
    await until(lambda: len(state.budgets.polls) == 1)
    state.lifecycle.stop()
    async with asyncio.timeout(20):
        assert (await poll).json()["status"] == "in_progress"


async def test_calls_under_way_are_bounded_for_a_key(small: Gateway) -> None:
    job = await small.submit(["a"])
    calls = small.app._app.state.budgets.calls  # type: ignore[attr-defined]
    gone = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"model": "tiny", "input": '
        await gone.wait()
        yield b'"a"}'

    kind = {"content-type": "application/json"}
    held = [asyncio.create_task(small.client.post("/v1/embeddings", content=slow(), headers=kind)) for _ in range(4)]
    await until(lambda: len(calls) == 4)
    assert (await small.client.get(f"{JOBS}/{job['id']}")).status_code == 429
    other = await small.another_key()
    assert (await small.client.get("/v1/models", headers=other)).status_code == 200
    gone.set()
    assert [(await each).status_code for each in held] == [200] * 4
    assert len(calls) == 0


# --- Readiness ---


class SilentBroker:
    """Accepts, and says nothing."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.socket.getsockname()[1]}/0"


async def test_a_silent_broker_keeps_no_probe_waiting_and_no_thread(data_dir: Path) -> None:
    broker = SilentBroker()
    gateway = await open_gateway(data_dir, broker_url=broker.url)
    try:
        async with asyncio.timeout(20):
            replies = await asyncio.gather(*(gateway.client.get("/readyz") for _ in range(40)))
            # The threads that the event loop shares with everybody are free.
            await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
        assert {reply.status_code for reply in replies} == {503}
        assert replies[0].json()["broker"] == "unavailable" and replies[0].json()["database"] == "ok"
        assert len([thread for thread in threads() if thread.startswith("broker-probe")]) == 1
    finally:
        broker.socket.close()
        await close_gateway(gateway)


def threads() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate()]


async def test_a_draining_process_is_not_ready_and_serves(gateway: Gateway) -> None:
    await worker_heartbeats.heartbeat(gateway.runtime.database, "worker-1", 2)
    gateway.app._app.state.lifecycle.is_draining = True  # type: ignore[attr-defined]
    reply = await gateway.client.get("/readyz")
    assert (reply.status_code, reply.json()["status"]) == (503, "draining")
    assert (await gateway.embed("a")).status_code == 200


async def test_operations_on_a_port_of_their_own_are_nowhere_else(data_dir: Path) -> None:
    from api.app import operations_app
    from api.http.middleware import RequestContext

    gateway = await open_gateway(data_dir, ops_port=9_999)
    transport = httpx.ASGITransport(RequestContext(operations_app(gateway.app._app)))  # type: ignore[attr-defined]
    async with httpx.AsyncClient(transport=transport, base_url="http://ops") as ops:
        for path, status in (("/healthz", 200), ("/readyz", 503), ("/metrics", 200)):
            assert (await gateway.client.get(path)).status_code == 404
            assert (await ops.get(path)).status_code == status
            assert (await ops.head(path)).status_code == status
        assert error_of(await ops.get("/v1/models"))["code"] == "not_found"
    await close_gateway(gateway)


def test_a_limit_of_a_key_is_the_callers_matter() -> None:
    from models.errors import Overloaded, RateLimited

    assert issubclass(RateLimited, RequestError) and not issubclass(Overloaded, RequestError)


async def test_a_model_says_since_when_it_is_there(gateway: Gateway) -> None:
    created = {model["created"] for model in (await gateway.client.get("/v1/models")).json()["data"]}
    assert created == {await asyncio.to_thread(lambda: int(Path(gateway.runtime.settings.config).stat().st_mtime))}
