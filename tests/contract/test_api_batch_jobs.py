"""A batch seen as a job: by either id, in every state, and its vectors by index."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import orjson
import pytest

from engine.batches.composition import step_worker_of
from providers.fake import fake_vectors
from tests.gateway import JOBS, Gateway, error_of

BATCHES = "/v1/batches"


def requests_of(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"custom_id": f"id-{n}", "body": body} for n, body in enumerate(bodies)]


async def create(gateway: Gateway, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"endpoint": "/v1/embeddings", "requests": requests_of(bodies)}
    reply = await gateway.client.post(BATCHES, json=body)
    assert reply.status_code in (200, 201, 202), reply.text
    batch: dict[str, Any] = reply.json()
    return batch


async def step(gateway: Gateway) -> bool:
    return await step_worker_of(gateway.runtime, "w").run_next()


async def test_the_job_of_a_batch_goes_through_its_states(gateway: Gateway) -> None:
    batch = await create(gateway, [{"model": "tiny", "input": f"text {n}"} for n in range(5)])
    job_id = batch["job_id"]
    job = await gateway.job(job_id)
    assert (job["status"], job["model"], job["space"], job["dimensions"]) == ("validating", None, None, None)
    assert (job["batch_id"], job["counts"]["total"], job["waiting_on"]) == (batch["id"], None, None)
    assert job["input_file_id"] == batch["input_file_id"]
    assert (await gateway.results(job_id)).content == b""
    assert await step(gateway)
    job = await gateway.job(job_id)
    assert (job["status"], job["model"], job["dimensions"], job["waiting_on"]) == ("in_progress", "tiny", 16, "ingest")
    assert await step(gateway)
    job = await gateway.job(job_id)
    assert (job["status"], job["counts"]["total"], job["counts"]["pending"]) == ("in_progress", 5, 5)
    job = await gateway.run(job_id)
    assert (job["status"], job["counts"]["completed"]) == ("completed", 5)
    lines = [orjson.loads(line) for line in (await gateway.results(job_id)).content.splitlines()]
    assert [line["id"] for line in lines] == [f"id-{n}" for n in range(5)]
    rows = np.load(io.BytesIO((await gateway.results(job_id, format="npy", start=1, stop=4)).content))
    assert np.array_equal(rows, fake_vectors([f"text {n}" for n in range(1, 4)], 16, "up"))


async def test_the_id_of_the_batch_stands_for_that_of_the_job(gateway: Gateway) -> None:
    batch = await create(gateway, [{"model": "tiny", "input": "a"}])
    path = f"{JOBS}/{batch['id']}"
    reply = await gateway.client.get(path)
    assert reply.json() == await gateway.job(batch["job_id"])
    again = await gateway.client.get(path, headers={"if-none-match": reply.headers["etag"]})
    assert again.status_code == 304
    waited = await gateway.client.get(path, params={"wait": 0})
    assert waited.json()["id"] == batch["job_id"]
    for view in ("results", "errors", "routes"):
        assert (await gateway.client.get(f"{path}/{view}")).status_code == 200
    paused = await gateway.client.post(f"{path}/pause")
    assert paused.status_code == 409 and "validating" in error_of(paused)["message"]


async def test_an_id_of_a_batch_that_is_none_is_not_found(gateway: Gateway) -> None:
    job = await gateway.submit(["a"])
    batch = await create(gateway, [{"model": "tiny", "input": "a"}])
    not_a_batch = job["id"].replace("job_", "batch_")
    theirs = await gateway.another_key()
    unknown = (await gateway.client.get(f"{JOBS}/job_{'0' * 32}")).json()
    for path, headers in (
        (not_a_batch, {}),
        ("batch_" + "0" * 32, {}),
        ("batch_1", {}),
        (batch["id"].upper(), {}),
        (batch["id"], theirs),
    ):
        for method, action in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
            reply = await gateway.client.request(method, f"{JOBS}/{path}{action}", headers=headers)
            assert (reply.status_code, reply.json()) == (404, unknown), (path, action)
    assert (await gateway.job(job["id"]))["status"] == "in_progress"


@pytest.mark.parametrize("query", [{}, {"format": "npy"}, {"start": 0, "stop": 1}])
async def test_vectors_of_several_widths_are_no_matrix(gateway: Gateway, query: dict[str, Any]) -> None:
    batch = await create(gateway, [{"model": "tiny", "input": "a"}, {"model": "tiny", "input": "b", "dimensions": 8}])
    assert await step(gateway) and await step(gateway)
    job = await gateway.run(batch["job_id"])
    assert (job["status"], job["model"], job["dimensions"]) == ("completed", None, None)
    reply = await gateway.client.get(f"{JOBS}/{batch['job_id']}/results", params=query)
    assert (reply.status_code, error_of(reply)["code"]) == (409, "mixed_dimensions")
    assert f"GET /v1/batches/{batch['id']}/results" in error_of(reply)["message"]


async def test_models_of_one_width_are_one_matrix(gateway: Gateway) -> None:
    bodies = [{"model": ("tiny", "short")[n % 2], "input": f"text {n}"} for n in range(6)]
    batch = await create(gateway, bodies)
    assert await step(gateway) and await step(gateway)
    job = await gateway.run(batch["job_id"])
    assert (job["status"], job["model"], job["dimensions"]) == ("completed", None, None)
    rows = np.load(io.BytesIO((await gateway.results(batch["job_id"], format="npy")).content))
    expected = fake_vectors([f"text {n}" for n in (0, 2, 4, 1, 3, 5)], 16, "up")
    assert np.array_equal(rows, expected)
    listed = (await gateway.client.get(JOBS)).json()["data"]
    assert [each["batch_id"] for each in listed] == [batch["id"]]


async def test_a_cancelled_batch_is_not_read(gateway: Gateway) -> None:
    batch = await create(gateway, [{"model": "tiny", "input": "a"}])
    assert await step(gateway)
    reply = await gateway.client.post(f"{JOBS}/{batch['id']}/cancel")
    assert reply.status_code == 200 and reply.json()["status"] == "cancelled"
    assert await step(gateway)
    assert not await gateway.shards(batch["job_id"])
