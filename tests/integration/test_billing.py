"""Every token that a provider bills is in the ledger: delivered, wasted or ambiguous, for sync calls and jobs alike."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select, update

from engine.ledger import usage_rows
from models.base import PICODOLLAR
from models.embedding import Account, BatchOutcome, Limits, Route
from models.job import Shard
from models.usage import UsageRecord
from providers.base import UpstreamReply
from tests.fakes import FakeWire, fake
from tests.gateway import JOBS, Gateway, close_gateway, open_gateway
from tests.integration.snapshot import DatabaseSnapshot, total_usd
from tests.running import run_shard
from tests.waiting import until

PRICE = Decimal("0.02") / 1_000_000
CONFIG = """
[providers.up]
kind = "openai"
base_url = "http://up/v1"

[models.tiny]
dimensions = 16
input_usd_per_million_tokens = "0.02"
routes = [{ provider = "up", model = "m", max_inputs_per_call = 20 }]
"""
TEXTS = [f"text {i} " + "word " * (i % 7) for i in range(40)]


@pytest.fixture
async def wire() -> FakeWire:
    return FakeWire(up=fake())


@pytest.fixture
async def billed(data_dir: Path, wire: FakeWire) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, config=CONFIG, wire=wire, shard_budget_s=2.0)
    yield gateway
    await close_gateway(gateway)


def plays(wire: FakeWire, *rules: dict[str, Any]) -> None:
    wire.hosts["up"] = fake(*rules)


async def rows_of(gateway: Gateway) -> list[Any]:
    await gateway.runtime.usage.flush()
    async with gateway.runtime.database.read() as connection:
        return list((await connection.execute(select(*UsageRecord.__table__.columns))).all())


async def run_once(gateway: Gateway, job_id: str) -> dict[str, Any]:
    """What one claim of each of the job's shards comes to."""
    async with gateway.runtime.database.write() as connection:
        await connection.execute(update(Shard).where(Shard.job_id == job_id).values(next_run_at=0.0))
    for shard_id in await gateway.shards(job_id):
        await run_shard(gateway.runtime, shard_id, "test")
    (await DatabaseSnapshot.read(gateway.runtime.database, job_id)).check()
    return await gateway.job(job_id)


# C1: sync of 100 texts, reply nan: 3 calls and 1,200 tokens were billed, and the ledger had 0.
@pytest.mark.parametrize("reply", ["nan", "inf", "zero"])
async def test_a_reply_that_is_refused_is_in_the_ledger_of_its_caller(
    billed: Gateway, wire: FakeWire, reply: str
) -> None:
    plays(wire, {"do": {"reply": reply}})
    answer = await billed.embed(TEXTS, user="u")
    assert answer.status_code == 502
    rows = await rows_of(billed)
    assert wire.billed_tokens > 0
    assert sum(row.prompt_tokens for row in rows) == wire.billed_tokens
    assert total_usd(rows) == wire.billed_tokens * PRICE
    assert {(row.kind, row.project, row.lane, row.provider, row.upstream_model, row.end_user) for row in rows} == {
        ("wasted", "default", "interactive", "up", "m", "u")
    }
    assert {row.code for row in rows} == {"upstream_protocol_error"} and all(row.key_id for row in rows)


@pytest.mark.parametrize("reply", ["short", "long", "wrong_width", "duplicate_index", "html", "empty", "cut_json"])
async def test_a_reply_that_cannot_be_read_is_charged_for_at_least(billed: Gateway, wire: FakeWire, reply: str) -> None:
    """Where nothing of the reply says what was billed, that is estimated, on the safe side."""
    plays(wire, {"do": {"reply": reply}})
    assert (await billed.embed(TEXTS)).status_code == 502
    rows = await rows_of(billed)
    assert {row.kind for row in rows} == {"wasted"}
    assert sum(row.inputs for row in rows) == sum(call.inputs for call in wire.bill)
    assert wire.billed_tokens <= sum(row.prompt_tokens for row in rows) <= 3 * wire.billed_tokens


# C1: bulk, the same: `failed`, cost_usd 0, 57,748 tokens billed, ledger 0.
@pytest.mark.parametrize("reply", ["nan", "zero"])
async def test_a_job_says_what_was_wasted_on_it(billed: Gateway, wire: FakeWire, reply: str) -> None:
    plays(wire, {"do": {"reply": reply}})
    job_id = (await billed.submit(TEXTS))["id"]
    job = await run_once(billed, job_id)
    rows = await rows_of(billed)
    assert sum(row.prompt_tokens for row in rows) == wire.billed_tokens > 0
    assert {(row.kind, row.job_id) for row in rows} == {("wasted", job_id)}
    assert job["wasted"] == {
        "calls": len(wire.bill),
        "inputs": sum(call.inputs for call in wire.bill),
        "tokens": wire.billed_tokens,
        "cost_usd": job["cost_usd"],
    }
    assert Decimal(job["cost_usd"]) == wire.billed_tokens * PRICE
    assert job["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


async def test_what_is_wasted_before_a_success_is_charged_beside_it(billed: Gateway, wire: FakeWire) -> None:
    plays(wire, {"times": 2, "do": {"reply": "zero"}})
    job = await run_once(billed, (await billed.submit(TEXTS))["id"])
    assert job["status"] == "completed"
    rows = await rows_of(billed)
    assert {row.kind for row in rows} == {"wasted", "delivered"}
    assert sum(row.prompt_tokens for row in rows) == wire.billed_tokens
    assert job["usage"]["total_tokens"] + job["wasted"]["tokens"] == wire.billed_tokens
    assert Decimal(job["cost_usd"]) == wire.billed_tokens * PRICE


# C1: with max_cost_usd 0.00002 the provider billed 0.0000578, and the job said 0.
@pytest.mark.parametrize("trouble", [{"reply": "zero"}, {"fault": "close"}, {"reply": "short"}])
async def test_a_ceiling_counts_what_is_wasted_and_what_may_be_billed(
    billed: Gateway, wire: FakeWire, trouble: dict[str, Any]
) -> None:
    plays(wire, {"do": trouble})
    ceiling = Decimal("0.00002")
    job_id = (await billed.submit(TEXTS * 5, max_cost_usd=str(ceiling)))["id"]
    for _ in range(20):
        job = await run_once(billed, job_id)
        if job["status"] != "in_progress":
            break
    # A route whose every reply is useless is an outage, which is waited for; what is spent until then stays below.
    assert (job["status"], job["waiting_on"]) in {("paused", "budget"), ("in_progress", "provider")}
    assert 0 < Decimal(job["cost_usd"]) + Decimal(job["ambiguous"]["cost_usd"]) <= ceiling
    assert wire.billed_tokens * PRICE <= ceiling
    if job["status"] == "paused":
        raised = await billed.client.post(f"{JOBS}/{job_id}/resume", json={"max_cost_usd": "0.000000000001"})
        assert raised.status_code == 400


# Row 94: 20 calls of 128 inputs were served, and neither ledger nor metric knew.
async def test_a_caller_who_hangs_up_leaves_an_ambiguous_row(billed: Gateway, wire: FakeWire) -> None:
    plays(wire, {"do": {"fault": "hang", "billed": True}})
    body = orjson.dumps({"model": "tiny", "input": TEXTS[:20]})
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await until(lambda: wire.in_flight)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        return None

    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {billed.key}".encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/embeddings", "raw_path": b"/v1/embeddings", "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("gateway", 80),
    }  # fmt: skip
    async with asyncio.timeout(10):
        await billed.app(scope, receive, send)
    [row] = await rows_of(billed)
    assert (row.kind, row.code, row.project, row.inputs) == ("ambiguous", "cut_off", "default", 20)
    assert row.key_id and row.estimated
    assert wire.billed_tokens <= row.prompt_tokens and wire.billed_tokens * PRICE <= row.cost_usd


@pytest.mark.parametrize("fault", ["hang", "close", "reset"])
async def test_a_call_without_an_answer_leaves_an_ambiguous_row(data_dir: Path, wire: FakeWire, fault: str) -> None:
    gateway = await open_gateway(data_dir, config=CONFIG, wire=wire, sync_timeout_s=0.3)
    plays(wire, {"do": {"fault": fault, "billed": True}})
    assert (await gateway.embed(TEXTS[:20])).status_code in (502, 504)
    rows = await rows_of(gateway)
    assert {(row.kind, row.project) for row in rows} == {("ambiguous", "default")}
    assert len(rows) == len(wire.bill)
    assert wire.billed_tokens * PRICE <= total_usd(rows)
    await close_gateway(gateway)


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_a_refusal_is_not_billed(billed: Gateway, wire: FakeWire, status: int) -> None:
    plays(wire, {"do": {"status": status, "retry_after": 60}})
    assert (await billed.embed(TEXTS[:1])).status_code >= 400
    assert await rows_of(billed) == []


# Row 95: the caller saw a cost of 10**9, and the row was lost.
@pytest.mark.parametrize("reported", [10**15, 2**53 - 1, 10**9, 5000])
async def test_more_tokens_than_there_can_be_are_not_believed(billed: Gateway, wire: FakeWire, reported: int) -> None:
    def absurd(reply: UpstreamReply) -> UpstreamReply:
        document = orjson.loads(reply.body)
        document["usage"] = {"prompt_tokens": reported, "total_tokens": reported}
        return dataclasses.replace(reply, body=orjson.dumps(document))

    wire.edit = absurd
    answer = (await billed.embed(TEXTS[:20])).json()
    assert answer["usage"]["prompt_tokens"] <= 3 * wire.billed_tokens
    assert answer["providerMetadata"]["gateway"]["usageEstimated"] is True
    [row] = await rows_of(billed)
    assert (row.kind, row.estimated, row.prompt_tokens) == ("delivered", True, answer["usage"]["prompt_tokens"])
    job = await run_once(billed, (await billed.submit(TEXTS[:20]))["id"])
    assert job["usage_estimated"] is True and job["usage"]["total_tokens"] == row.prompt_tokens


async def test_the_error_of_one_input_wastes_what_its_neighbours_cost(billed: Gateway, wire: FakeWire) -> None:
    """The caller gets none of it, but the provider bills it: the row says wasted, and why."""
    plays(wire, {"when": {"contains": "text 39 "}, "do": {"status": 400, "message": "No."}})
    answer = await billed.embed(TEXTS)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[39]")
    rows = await rows_of(billed)
    assert {(row.kind, row.code) for row in rows} == {("wasted", "upstream_rejected")}
    assert sum(row.prompt_tokens for row in rows) == wire.billed_tokens > 0


@pytest.mark.parametrize(
    ("tokens", "cost", "user"),
    [(10**30, Decimal(10) ** 40, "u"), (-5, Decimal(-1), "a\0b"), (7, Decimal(1) / 3, "half \ud83d" + "x" * 300)],
)
def test_a_row_is_never_lost_because_of_a_number_or_a_name(tokens: int, cost: Decimal, user: str) -> None:
    route = Route(Account("up", "openai", ""), "m", 16, Limits(), Decimal(1))
    part = BatchOutcome([0], None, None, tokens, False, cost, route)
    [row] = usage_rows.delivered([part], project="p", key_id="k", lane="bulk", alias="a", user=user)
    assert 0 <= row["prompt_tokens"] < 2**63
    assert 0 <= int(row["cost_usd"] / PICODOLLAR) < 2**63
    assert "\0" not in row["end_user"] and len(row["end_user"].encode()) and len(row["end_user"]) <= 256
