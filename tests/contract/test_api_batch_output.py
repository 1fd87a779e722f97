"""A batch from its upload to its files, through the API: what a client reads of it while it runs and at its end."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest
from sqlalchemy import update

from engine.jobs.composition import sweep_of
from models.base import db_now
from models.job import Job
from providers.fake import fake_vectors
from tests.contract.batch_calls import BATCHES, content, create, get, lines_of, request, run, run_shards, run_steps
from tests.gateway import JOBS, WIDTH, Gateway, error_of

MIXED = [
    request("one", "alpha"),
    request("list", ["beta", "gamma", "delta"]),
    request("narrow", "alpha", "cut", dimensions=4),
    request("base64", "alpha", encoding_format="base64"),
    request("other", "alpha", "fixed"),
    request("empty", ""),
    request("poison", ["fine", "poison"]),
    request("too long", "word " * 100, "fixed"),
    request("no list", []),
]


def vector(line: dict[str, Any], position: int = 0) -> list[float]:
    embedding = line["response"]["body"]["data"][position]["embedding"]
    if isinstance(embedding, str):
        embedding = np.frombuffer(base64.b64decode(embedding), "<f4").tolist()
    numbers: list[float] = np.array(embedding, dtype="<f4").tolist()
    return numbers


async def test_a_batch_from_its_upload_to_its_files(gateway: Gateway) -> None:
    batch = await create(gateway, MIXED, metadata={"purpose": "test"})
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    await run_steps(gateway)
    batch = await get(gateway, batch["id"])
    assert batch["status"] == "in_progress" and batch["request_counts"]["total"] == len(MIXED)
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
    await run_shards(gateway)
    assert (await get(gateway, batch["id"]))["status"] == "finalizing"
    await run_steps(gateway)
    batch = await get(gateway, batch["id"])
    assert batch["status"] == "completed", batch["errors"]
    output, errors = await lines_of(gateway, batch["output_file_id"]), await lines_of(gateway, batch["error_file_id"])
    assert [line["custom_id"] for line in output] == ["one", "list", "narrow", "base64", "other"]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        ("empty", "empty_input"),
        ("poison", "upstream_rejected"),
        ("too long", "input_too_long"),
        ("no list", "empty_array"),
    ]
    assert [line["error"]["param"] for line in errors] == ["input", "input[1]", "input", "input"]
    right = fake_vectors(["alpha", "beta", "gamma", "delta"], WIDTH, "up")
    assert vector(output[0]) == vector(output[3]) == vector(output[4]) == right[0].tolist()
    assert [vector(output[1], position) for position in range(3)] == right[1:].tolist()
    assert len(vector(output[2])) == 4
    assert batch["request_counts"] == {"total": 9, "completed": 5, "failed": 4}
    tokens = sum(line["response"]["body"]["usage"]["total_tokens"] for line in output)
    assert batch["usage"]["total_tokens"] == batch["usage"]["input_tokens"] == tokens > 0
    assert (batch["usage"]["output_tokens"], batch["usage"]["output_tokens_details"]) == (0, {"reasoning_tokens": 0})
    instants = [batch[f"{name}_at"] for name in ("created", "in_progress", "finalizing", "completed")]
    assert instants == sorted(instants) and None not in instants


async def test_the_files_are_files(gateway: Gateway) -> None:
    batch = await run(gateway, (await create(gateway, MIXED))["id"])
    listed = (await gateway.client.get("/v1/files", params={"purpose": "batch_output"})).json()["data"]
    assert {file["id"] for file in listed} == {batch["output_file_id"], batch["error_file_id"]}
    for file in listed:
        which = "output" if file["id"] == batch["output_file_id"] else "error"
        assert file["filename"] == f"{batch['id']}_{which}.jsonl"
        assert file["bytes"] == len(await content(gateway, file["id"]))
        assert file["expires_at"] - file["created_at"] == pytest.approx(30 * 86400, abs=2)
    reply = await gateway.client.get(f"/v1/files/{batch['output_file_id']}/content")
    assert f'filename="{batch["id"]}_output.jsonl"' in reply.headers["content-disposition"]


async def test_results_are_the_lines_of_both_files_in_input_order(gateway: Gateway) -> None:
    batch = await run(gateway, (await create(gateway, MIXED))["id"])
    reply = await gateway.client.get(f"{BATCHES}/{batch['id']}/results")
    assert reply.headers["x-embedmill-complete"] == "true"
    assert reply.headers["content-type"] == "application/x-ndjson"
    lines = reply.content.splitlines(keepends=True)
    assert [orjson.loads(line)["custom_id"] for line in lines] == [orjson.loads(line)["custom_id"] for line in MIXED]
    files = [await content(gateway, batch[name]) for name in ("output_file_id", "error_file_id")]
    assert sorted(lines) == sorted(b"".join(files).splitlines(keepends=True))
    page = await gateway.client.get(f"{BATCHES}/{batch['id']}/results", params={"limit": 2, "after": "list"})
    assert page.content.splitlines(keepends=True) == lines[2:4]


async def test_results_are_readable_while_the_batch_runs(gateway: Gateway) -> None:
    batch = await create(gateway, MIXED)
    url = f"{BATCHES}/{batch['id']}/results"
    before = await gateway.client.get(url)
    assert (before.status_code, before.content, before.headers["x-embedmill-complete"]) == (200, b"", "false")
    await run_steps(gateway)
    # Refused lines are done, but the first line is not: what comes behind a gap is not shown before it.
    assert (await gateway.client.get(url)).content == b""
    await run_shards(gateway)
    done = await gateway.client.get(url)
    assert done.headers["x-embedmill-complete"] == "false"
    ids = [orjson.loads(line)["custom_id"] for line in done.content.splitlines()]
    assert ids == [orjson.loads(line)["custom_id"] for line in MIXED]


async def test_wrong_calls_for_results_are_named(gateway: Gateway) -> None:
    batch = await create(gateway, MIXED)
    url = f"{BATCHES}/{batch['id']}/results"
    await run_steps(gateway)
    for query, param in (({"after": "nobody"}, "after"), ({"limit": "0"}, "limit"), ({"start": "1"}, "start")):
        assert error_of(await gateway.client.get(url, params=query))["param"] == param
    other = await gateway.another_key()
    for reply in (
        await gateway.client.get(url, headers=other),
        await gateway.client.get(f"{BATCHES}/batch_{'0' * 32}/results"),
        await gateway.client.get(f"{BATCHES}/nonsense/results"),
    ):
        assert reply.status_code == 404 and error_of(reply)["message"].startswith("No batch found")


@pytest.mark.parametrize("gone", ["output_file_id", "error_file_id", "both"])
async def test_results_whose_files_were_deleted(gateway: Gateway, gone: str) -> None:
    batch = await run(gateway, (await create(gateway, MIXED))["id"])
    names = ["output_file_id", "error_file_id"]
    for name in names if gone == "both" else [gone]:
        await gateway.client.delete(f"/v1/files/{batch[name]}")
    for _ in range(2):  # before and after the sweep
        reply = await gateway.client.get(f"{BATCHES}/{batch['id']}/results")
        error = error_of(reply)
        assert (reply.status_code, error["code"]) == (404, "batch_output_deleted")
        assert "output of this batch was deleted" in error["message"] and "as a new batch" in error["message"]
        shown = [name for name in names if batch[name] in error["message"]]
        assert shown == [name for name in names if gone not in (name, "both")]
        await sweep_of(gateway.runtime).run()
    assert (await get(gateway, batch["id"]))["status"] == "completed"


async def test_a_batch_that_failed_its_validation_has_no_results(gateway: Gateway) -> None:
    batch = await run(gateway, (await create(gateway, [request("a", "a"), b"{"]))["id"])
    assert batch["status"] == "failed"
    url = f"{BATCHES}/{batch['id']}/results"
    for query in ({}, {"limit": 1}, {"after": "a"}):
        reply = await gateway.client.get(url, params=query)
        assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "false")
        error = error_of(reply)
        assert error["code"] == "batch_failed" and f"GET {BATCHES}/{batch['id']}" in error["message"]
    other = await gateway.another_key()
    assert (await gateway.client.get(url, headers=other)).status_code == 404


async def test_all_requests_fail(gateway: Gateway) -> None:
    batch = await run(gateway, (await create(gateway, [request("a", ""), request("b", "poison")]))["id"])
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    for line in await lines_of(gateway, batch["error_file_id"]):
        assert line["response"]["status_code"] == 400 and line["error"]["code"]


async def test_a_clean_batch_has_no_error_file(gateway: Gateway) -> None:
    batch = await run(gateway, (await create(gateway, [request("a", "a"), request("b", "b")]))["id"])
    assert batch["error_file_id"] is None and len(await lines_of(gateway, batch["output_file_id"])) == 2


async def test_lenient_runs_the_good_lines(gateway: Gateway) -> None:
    lines = [request("a", "a"), b"{", request("a", "b"), request("c", "c", "no such model"), b"", request("d", "d")]
    batch = await create(gateway, lines, metadata={"embedmill_validation": "lenient"})
    batch = await run(gateway, batch["id"])
    assert batch["status"] == "completed"
    assert [line["custom_id"] for line in await lines_of(gateway, batch["output_file_id"])] == ["a", "d"]
    errors = await lines_of(gateway, batch["error_file_id"])
    assert [(line["error"]["line"], line["error"]["code"]) for line in errors] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "model_not_found"),
    ]
    assert batch["request_counts"] == {"total": 5, "completed": 2, "failed": 3}


async def test_nothing_can_run_in_a_lenient_batch(gateway: Gateway) -> None:
    batch = await create(gateway, [request("c", "c", "none"), b"{"], metadata={"embedmill_validation": "lenient"})
    batch = await run(gateway, batch["id"])
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert len(await lines_of(gateway, batch["error_file_id"])) == 2


async def many(gateway: Gateway) -> dict[str, Any]:
    """A batch whose first shard alone has run."""
    batch = await create(gateway, [request(f"id-{i}", f"text {i}", "short") for i in range(40)])
    await run_steps(gateway)
    await run_shards(gateway, limit=1)
    return batch


async def test_a_cancel_keeps_what_has_run(gateway: Gateway) -> None:
    batch = await many(gateway)
    reply = await gateway.client.post(f"{BATCHES}/{batch['id']}/cancel")
    assert reply.json()["status"] in ("cancelling", "cancelled")
    await run_steps(gateway)
    batch = await get(gateway, batch["id"])
    assert batch["status"] == "cancelled" and batch["cancelling_at"] <= batch["cancelled_at"]
    output, errors = await lines_of(gateway, batch["output_file_id"]), await lines_of(gateway, batch["error_file_id"])
    assert len(output) + len(errors) == 40 and len(output) == batch["request_counts"]["completed"]
    assert all(line["error"]["code"] == "batch_cancelled" for line in errors)


async def test_the_end_of_the_window_keeps_what_has_run(gateway: Gateway) -> None:
    from tests.running import sweep

    batch = await create(gateway, [request(f"id-{i}", f"text {i}") for i in range(4)], completion_window="1h")
    await run_steps(gateway)
    async with gateway.runtime.database.write() as connection:
        await connection.execute(update(Job).values(expires_at=db_now() - 1))
    await sweep(gateway.runtime)
    await run_steps(gateway)
    batch = await get(gateway, batch["id"])
    assert batch["status"] == "expired" and batch["expired_at"] >= batch["finalizing_at"]
    errors = await lines_of(gateway, batch["error_file_id"])
    assert [line["error"]["code"] for line in errors] == ["batch_expired"] * 4
    assert all(line["response"] is None for line in errors)


async def test_retry_and_delete_of_the_job(gateway: Gateway) -> None:
    batch = await run(gateway, (await create(gateway, [request("a", "a"), request("b", "poison")]))["id"])
    job = f"{JOBS}/{batch['job_id']}"
    assert (await gateway.client.post(f"{job}/retry")).status_code == 200
    again = await get(gateway, batch["id"])
    assert (again["status"], again["output_file_id"], again["completed_at"]) == ("in_progress", None, None)
    again = await run(gateway, batch["id"])
    assert again["status"] == "completed" and again["output_file_id"] not in (None, batch["output_file_id"])
    assert again["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert (await gateway.client.delete(job)).status_code in (200, 204)
    assert (await gateway.client.get(f"{BATCHES}/{batch['id']}")).status_code == 404
    assert (await gateway.client.get(f"/v1/files/{again['output_file_id']}")).status_code == 404
