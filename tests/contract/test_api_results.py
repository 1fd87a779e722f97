"""Results over HTTP: one vector or one error an index, in order, in every format and range, while the job runs too."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from sqlalchemy import select

from models.embedding import Matrix
from models.usage import UsageRecord
from providers.fake import fake_vectors
from tests.gateway import JOBS, WIDTH, Gateway, close_gateway, error_of, open_gateway

TEXTS = [f"text {i}" for i in range(100)]
BAD = {3: "poison 3", 50: "", 99: "poison 99"}

RANGES: list[tuple[int | None, int | None, range]] = [
    (0, 100, range(100)),
    (10, 40, range(10, 40)),
    (15, 17, range(15, 17)),
    (3, 4, range(3, 4)),
    (None, 5, range(5)),
    (95, None, range(95, 100)),
    (90, 1000, range(90, 100)),
    (50, 50, range(0)),
    (100, None, range(0)),
    (10**12, None, range(0)),
    (None, 0, range(0)),
]


def corpus() -> list[Any]:
    """A hundred inputs, three of them bad, every fifth with an id of its own."""
    texts = [BAD.get(i, text) for i, text in enumerate(TEXTS)]
    return [{"id": f"id {i}", "text": text} if i % 5 == 0 else text for i, text in enumerate(texts)]


def lines(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.headers["content-type"] == "application/x-ndjson" and reply.content.endswith(b"\n")
    return [orjson.loads(line) for line in reply.content.splitlines()]


def array(reply: httpx.Response) -> Matrix:
    assert int(reply.headers["content-length"]) == len(reply.content)
    loaded: Matrix = np.load(io.BytesIO(reply.content), allow_pickle=False)
    assert loaded.dtype == np.float32
    return loaded


@pytest.fixture
async def small(data_dir: Path) -> AsyncIterator[Gateway]:
    """A gateway with shards of 16 inputs and calls of 6, so that a hundred inputs are many of each."""
    gateway = await open_gateway(data_dir, shard_inputs=16, batch_inputs=6)
    yield gateway
    await close_gateway(gateway)


@pytest.fixture
async def ended(small: Gateway) -> dict[str, Any]:
    """A job that has run to its end."""
    return await small.run((await small.submit(corpus()))["id"])


async def test_a_job_runs_to_its_end(small: Gateway, ended: dict[str, Any]) -> None:
    assert (ended["status"], ended["progress"]) == ("completed_with_errors", 1.0)
    assert ended["counts"] == {"total": 100, "completed": 97, "failed": 3, "pending": 0}
    by_code = {error["code"]: (error["count"], error["example_index"]) for error in ended["errors"]}
    assert by_code == {"upstream_rejected": (2, 3), "empty_input": (1, 50)}
    assert ended["finished_at"] >= ended["started_at"] >= ended["created_at"]
    assert ended["usage"]["prompt_tokens"] == 2 * 97 and not ended["usage_estimated"]


async def test_usage_is_the_sum_of_the_ledger(small: Gateway, ended: dict[str, Any]) -> None:
    async with small.runtime.database.read() as connection:
        rows = (await connection.execute(select(UsageRecord.__table__))).all()
    assert {(row.job_id, row.lane) for row in rows} == {(ended["id"], "bulk")}
    delivered = [row for row in rows if row.kind == "delivered"]
    assert sum(row.prompt_tokens for row in delivered) == ended["usage"]["prompt_tokens"]
    assert sum(row.inputs for row in delivered) == 97
    assert f"{sum(row.cost_usd for row in delivered):f}".rstrip("0") == "0.00000388"
    # Control calls, which show that a refusal is not the route's, are billed too, and the job says so.
    wasted = [row for row in rows if row.kind != "delivered"]
    assert {row.code for row in wasted} == {"control_call"}
    assert sum(row.prompt_tokens for row in wasted) == ended["wasted"]["tokens"]
    assert f"{sum(row.cost_usd for row in rows):f}".rstrip("0") == ended["cost_usd"]


async def test_ndjson_of_floats(small: Gateway, ended: dict[str, Any]) -> None:
    reply = await small.results(ended["id"])
    assert reply.headers["x-embedmill-complete"] == "true"
    found, right = lines(reply), fake_vectors(TEXTS, WIDTH, "up")
    assert [line["index"] for line in found] == list(range(100))
    for index, line in enumerate(found):
        assert line["id"] == (f"id {index}" if index % 5 == 0 else None)
        if index in BAD:
            assert set(line) == {"index", "id", "error"} and set(line["error"]) == {"code", "message", "retryable"}
        else:
            assert set(line) == {"index", "id", "embedding"}
            assert np.array(line["embedding"], dtype=np.float32).tobytes() == right[index].tobytes()


async def test_ndjson_of_base64_is_the_same(small: Gateway, ended: dict[str, Any]) -> None:
    floats = lines(await small.results(ended["id"]))
    packed = lines(await small.results(ended["id"], encoding_format="base64"))
    for one, other in zip(floats, packed, strict=True):
        if "embedding" in other:
            other["embedding"] = np.frombuffer(base64.b64decode(other["embedding"], validate=True), "<f4").tolist()
            one["embedding"] = np.array(one["embedding"], dtype=np.float32).tolist()
        assert one == other


async def test_npy(small: Gateway, ended: dict[str, Any]) -> None:
    rows, right = array(await small.results(ended["id"], format="npy")), fake_vectors(TEXTS, WIDTH, "up")
    good = [i for i in range(100) if i not in BAD]
    assert rows.shape == (100, WIDTH)
    assert rows[good].tobytes() == right[good].tobytes() and np.isnan(rows[list(BAD)]).all()


async def test_ranges(small: Gateway, ended: dict[str, Any]) -> None:
    whole = array(await small.results(ended["id"], format="npy"))
    for start, stop, indexes in RANGES:
        query = {name: value for name, value in (("start", start), ("stop", stop)) if value is not None}
        reply = await small.results(ended["id"], **query)
        assert [orjson.loads(line)["index"] for line in reply.content.splitlines()] == list(indexes), query
        rows = array(await small.results(ended["id"], format="npy", **query))
        assert rows.shape == (len(indexes), WIDTH), query
        assert np.array_equal(rows, whole[indexes.start : indexes.stop], equal_nan=True), query


async def test_results_while_the_job_runs(small: Gateway) -> None:
    job = await small.submit(corpus())
    empty = await small.results(job["id"])
    assert empty.headers["x-embedmill-complete"] == "false"
    assert [line["index"] for line in lines(empty)] == [50]  # refused on arrival
    await small.run(job["id"], only=slice(2, 3))  # the third shard: indexes 32 to 47
    partial = await small.results(job["id"])
    assert partial.headers["x-embedmill-complete"] == "false"
    assert [line["index"] for line in lines(partial)] == [*range(32, 48), 50]
    done = await small.results(job["id"], start=32, stop=48)
    assert done.headers["x-embedmill-complete"] == "true"
    rows = array(await small.results(job["id"], format="npy"))
    assert rows.shape == (100, WIDTH) and np.isnan(rows[:32]).all() and np.isnan(rows[48:]).all()
    assert rows[32:48].tobytes() == fake_vectors(TEXTS[32:48], WIDTH, "up").tobytes()
    running = await small.job(job["id"])
    assert (running["status"], running["counts"]["completed"], running["progress"]) == ("in_progress", 16, 0.17)
    assert (await small.run(job["id"]))["status"] == "completed_with_errors"


async def test_running_a_shard_twice_changes_nothing(small: Gateway, ended: dict[str, Any]) -> None:
    before = await small.results(ended["id"])
    assert await small.run(ended["id"]) == ended
    assert (await small.results(ended["id"])).content == before.content


async def test_cancelled_work_is_kept_and_readable(small: Gateway) -> None:
    job = await small.submit(TEXTS)
    await small.run(job["id"], only=slice(1))
    cancelled = (await small.client.post(f"{JOBS}/{job['id']}/cancel")).json()
    assert (cancelled["status"], cancelled["counts"]["completed"]) == ("cancelled", 16)
    assert [line["index"] for line in lines(await small.results(job["id"]))] == list(range(16))
    assert (await small.run(job["id"]))["counts"]["completed"] == 16


async def test_a_job_of_nothing_but_poison_has_failed(small: Gateway) -> None:
    job = await small.run((await small.submit(["poison 1", "poison 2"]))["id"])
    assert (job["status"], job["counts"]["failed"]) == ("failed", 2)
    assert job["usage"]["prompt_tokens"] == 0
    assert job["cost_usd"] == job["wasted"]["cost_usd"]  # of the control call


async def test_a_job_and_a_sync_call_agree(small: Gateway) -> None:
    for fields in ({}, {"dimensions": 5}, {"model": "cut", "dimensions": 4}):
        job = await small.submit(TEXTS[:20], **fields)
        await small.run(job["id"])
        rows = array(await small.results(job["id"], format="npy"))
        sync = (await small.embed(TEXTS[:20], **fields)).json()["data"]
        assert rows.tobytes() == np.array([item["embedding"] for item in sync], dtype=np.float32).tobytes()


async def test_inputs_that_fail_alone_while_a_control_call_passes_are_to_blame(small: Gateway) -> None:
    """An upstream that fails on every call is waited for: tests/integration/test_provider_wait.py."""
    job = await small.submit(["broken", "broken too"])
    ended = await small.run(job["id"])
    assert (ended["status"], ended["counts"]["failed"]) == ("failed", 2)
    assert {error["code"] for error in ended["errors"]} == {"upstream_rejected"}


async def test_an_upstream_that_fails_on_one_input_alone_costs_that_input_alone(small: Gateway) -> None:
    job = await small.submit(["broken", "fine"])
    ended = await small.run(job["id"])
    assert (ended["status"], ended["counts"]["completed"]) == ("completed_with_errors", 1)
    [error] = ended["errors"]
    assert (error["code"], error["example_index"]) == ("upstream_rejected", 0)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"format": "csv"}, "format"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"start": "-1"}, "start"),
        ({"stop": "x"}, "stop"),
        ({"start": "5", "stop": "4"}, "stop"),
        ({"limit": "4"}, "limit"),
    ],
)
async def test_results_that_nobody_has(gateway: Gateway, query: dict[str, str], param: str) -> None:
    job = await gateway.submit(["a"])
    reply = await gateway.client.get(f"{JOBS}/{job['id']}/results", params=query)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
