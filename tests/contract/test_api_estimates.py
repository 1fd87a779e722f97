"""`dry_run` and `max_cost_usd`: what a corpus would cost, told without a trace; and a ceiling, taken or refused."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from sqlalchemy import func, select

from api.http.schemas import JobEstimate
from engine.jobs.ingest.dry_run import quota_bound_seconds
from engine.planning import tokens
from models.base import Base
from models.embedding import Account, Limits, Route
from tests.gateway import CONFIG, JOBS, Gateway, close_gateway, error_of, open_gateway

TEXTS = ["a cat", "a dog", "a cat", "", [1, 2], "a cat"]


async def rows_of(gateway: Gateway) -> dict[str, int]:
    async with gateway.runtime.database.read() as connection:
        return {
            name: (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for name, table in Base.metadata.tables.items()
        }


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_estimate_leaves_no_trace(gateway: Gateway, streamed: bool) -> None:
    before = await rows_of(gateway)
    if streamed:
        reply = await gateway.stream(b"\n".join(map(orjson.dumps, TEXTS)), dry_run="true")
    else:
        reply = await gateway.client.post(
            JOBS,
            json={"model": "tiny", "input": TEXTS, "dry_run": True},
            headers={"idempotency-key": "not kept"},
        )
    assert reply.status_code == 200, reply.text
    body = reply.json()
    msgspec.convert(body, JobEstimate)
    assert (body["object"], body["model"], body["dimensions"]) == ("embedding.job.estimate", "tiny", 16)
    assert (body["inputs"], body["usable_inputs"], body["refused_inputs"], body["duplicates"]) == (6, 5, 1, 2)
    assert [(error["code"], error["count"], error["example_index"]) for error in body["errors"]] == [
        ("empty_input", 1, 3)
    ]
    once, again = tokens.count("a cat") + tokens.count("a dog") + 2, 2 * tokens.count("a cat")
    assert (body["tokens"], body["estimated"], body["calls"], body["eta_seconds"]) == (once, True, 1, None)
    assert float(body["cost_usd"]) == pytest.approx(once * 0.02 / 1e6)
    assert float(body["cost_usd_with_duplicates"]) == pytest.approx((once + again) * 0.02 / 1e6)
    assert await rows_of(gateway) == before


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("ceiling", "within"),
    [(None, None), ("0.00000001", False), ("0.00000015", False), ("0.00000016", True), ("5", True)],
)
async def test_an_estimate_says_whether_it_passes_the_ceiling(
    gateway: Gateway, streamed: bool, ceiling: str | None, within: bool | None
) -> None:
    """It took `max_cost_usd` and said nothing of it."""
    asked = {} if ceiling is None else {"max_cost_usd": ceiling}
    text = "a cat and a dog and a bird"
    assert tokens.count(text) == 8  # which cost $0.00000016
    if streamed:
        reply = await gateway.stream(orjson.dumps(text), dry_run="true", **asked)
    else:
        reply = await gateway.client.post(JOBS, json={"model": "tiny", "input": [text], "dry_run": True, **asked})
    body = reply.json()
    assert body["within_max_cost"] is within, body
    assert (body["max_cost_usd"] is None) == (ceiling is None)


async def test_calls_are_those_that_the_job_would_make(gateway: Gateway) -> None:
    texts = [f"text {number}" for number in range(20)]
    reply = await gateway.client.post(JOBS, json={"model": "short", "input": texts, "dry_run": True})
    assert reply.json()["calls"] == 3  # seven at a time


async def test_where_the_models_own_tokenizer_is_at_hand_tokens_are_exact(data_dir: Path) -> None:
    (data_dir / "openai-key").write_text("sk-test")
    account = f'[providers.openai]\nkind = "openai"\napi_key = "file:{data_dir}/openai-key"\n'
    gateway = await open_gateway(data_dir, config=CONFIG + account)
    asked = {"model": "openai/text-embedding-3-small", "input": ["hello world"], "dry_run": True}
    reply = await gateway.client.post(JOBS, json=asked)
    assert (reply.json()["tokens"], reply.json()["estimated"]) == (2, False)
    await close_gateway(gateway)


def test_the_time_is_what_the_tightest_quota_takes() -> None:
    def route(account: str, requests: int | None, tokens_: int | None) -> Route:
        quotas = Account(account, "fake", "", requests_per_minute=requests, tokens_per_minute=tokens_)
        return Route(quotas, "m", 8, Limits(), Decimal(0))

    assert quota_bound_seconds([route("a", 60, 1000)], 90, 1000) == 90
    assert quota_bound_seconds([route("a", 60, 1000), route("b", 30, 500)], 90, 3000) == 120
    assert quota_bound_seconds([route("a", 60, None), route("b", None, None)], 90, 3000) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"max_cost_usd": 0}, "max_cost_usd"), ({"max_cost_usd": "much"}, "max_cost_usd"), ({"dry_run": "x"}, "dry_run")],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_is_no_ceiling_and_no_answer(
    gateway: Gateway, fields: dict[str, Any], param: str, streamed: bool
) -> None:
    if streamed:
        reply = await gateway.stream(b'"a"\n', **fields)
    else:
        reply = await gateway.client.post(JOBS, json={"model": "tiny", "input": ["a"], **fields})
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_ceiling_is_shown(gateway: Gateway, streamed: bool) -> None:
    if streamed:
        job = (await gateway.stream(b'"a"\n', max_cost_usd="0.250")).json()
    else:
        job = await gateway.submit(["a"], max_cost_usd=0.25)
    assert (job["max_cost_usd"], job["deduplicated_inputs"]) == ("0.25", 0)
    assert (job["ambiguous"]["calls"], job["ambiguous"]["inputs"]) == (0, 0)
    assert (await gateway.run(job["id"]))["status"] == "completed"


async def test_a_job_that_reaches_its_ceiling_is_paused(gateway: Gateway) -> None:
    job = await gateway.submit(["a text that costs something"], max_cost_usd="0.000000000002")
    job = await gateway.run(job["id"])
    assert (job["status"], job["waiting_on"], job["cost_usd"]) == ("paused", "budget", "0")
