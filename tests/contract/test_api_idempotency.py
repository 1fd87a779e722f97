"""Idempotency-Key: however often and however close together a request is sent, there is one job."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.gateway import JOBS, Gateway, error_of

BODY = {"model": "tiny", "input": ["a", "b"]}


async def send(gateway: Gateway, key: str = "k", body: object = BODY) -> httpx.Response:
    return await gateway.client.post(JOBS, json=body, headers={"idempotency-key": key})


async def jobs(gateway: Gateway) -> list[str]:
    return [job["id"] for job in (await gateway.client.get(JOBS)).json()["data"]]


async def test_the_same_again_is_the_same_job(gateway: Gateway) -> None:
    first = await send(gateway)
    assert first.status_code == 202 and "idempotent-replayed" not in first.headers
    for _ in range(3):
        again = await send(gateway)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
        assert again.json()["id"] == first.json()["id"] and again.headers["location"] == first.headers["location"]
    assert await jobs(gateway) == [first.json()["id"]]


async def test_a_replay_shows_the_job_as_it_is_now(gateway: Gateway) -> None:
    job = (await send(gateway)).json()
    await gateway.run(job["id"])
    assert (await send(gateway)).json()["status"] == "completed"


@pytest.mark.fault(39)
async def test_another_body_under_the_same_key_is_refused(gateway: Gateway) -> None:
    first = await send(gateway)
    for body in ({**BODY, "input": ["a"]}, {**BODY, "dimensions": 4}):
        reply = await send(gateway, body=body)
        assert (reply.status_code, error_of(reply)["code"]) == (422, "idempotency_key_reused")
    streamed = await gateway.client.post(
        JOBS,
        params={"model": "tiny"},
        content=b'"a"\n"b"\n',
        headers={"idempotency-key": "k", "content-type": "application/x-ndjson"},
    )
    assert streamed.status_code == 422
    assert await jobs(gateway) == [first.json()["id"]]


async def test_a_stream_is_fingerprinted_with_its_options(gateway: Gateway) -> None:
    async def stream(**query: str) -> httpx.Response:
        headers = {"idempotency-key": "k", "content-type": "application/x-ndjson"}
        return await gateway.client.post(JOBS, params={"model": "tiny", **query}, content=b'"a"\n', headers=headers)

    first = await stream(dimensions="4")
    assert (await stream(dimensions="4")).json()["id"] == first.json()["id"]
    assert (await stream(dimensions="8")).status_code == 422
    assert (await stream()).status_code == 422


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"dimensions": "8"}, "dimensions of the job is 16, of this request 8. "),
        ({"model": "fixed"}, "model of the job is 'tiny', of this request 'fixed'. "),
        ({"truncate": "end"}, "truncate of the job is 'none', of this request 'end'. "),
        ({"max_cost_usd": "2.50"}, "max_cost_usd of the job is not set, of this request 2.5. "),
        ({"metadata": '{"a":"b"}'}, "metadata is another. "),
        ({"user": "u", "input_type": "query"}, "input_type of the job is not set, of this request 'query'; user is"),
    ],
)
async def test_a_query_that_differs_is_named(gateway: Gateway, query: dict[str, str], said: str) -> None:
    """It said "another body", where the body was the same."""
    headers = {"idempotency-key": "k", "content-type": "application/x-ndjson"}

    async def send(content: bytes, **given: str) -> httpx.Response:
        return await gateway.client.post(JOBS, params={"model": "tiny", **given}, content=content, headers=headers)

    assert (await send(b'"a"\n')).status_code == 202
    message = error_of(await send(b'"a"\n', **query))["message"]
    assert said in message and "another body" not in message
    assert "the options are the same, so the inputs differ" in error_of(await send(b'"b"\n'))["message"]


async def test_a_field_of_a_json_body_that_differs_is_named(gateway: Gateway) -> None:
    await send(gateway)
    assert "dimensions of the job is 16" in error_of(await send(gateway, body={**BODY, "dimensions": 4}))["message"]
    options = {**BODY, "providerOptions": {"fake": {"a": 1}}}
    assert "providerOptions is another" in error_of(await send(gateway, body=options))["message"]
    assert "the inputs differ" in error_of(await send(gateway, body={**BODY, "input": ["a"]}))["message"]


async def test_twenty_at_once_are_one_job(gateway: Gateway) -> None:
    replies = await asyncio.gather(*(send(gateway) for _ in range(20)))
    counts = Counter(reply.status_code for reply in replies)
    assert counts[202] == 1 and set(counts) <= {202, 200, 409}
    (made,) = await jobs(gateway)
    for reply in replies:
        if reply.status_code == 409:
            assert error_of(reply)["code"] == "idempotency_in_flight"
            assert reply.headers["x-should-retry"] == "true"
        else:
            assert reply.json()["id"] == made


async def test_while_the_first_is_still_arriving_the_second_waits_its_turn(gateway: Gateway) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'"a"\n'
        arrived.set()
        await go_on.wait()
        yield b'"b"\n'

    headers = {"idempotency-key": "k", "content-type": "application/x-ndjson"}
    first = asyncio.create_task(gateway.client.post(JOBS, params={"model": "tiny"}, content=slow(), headers=headers))
    await arrived.wait()
    second = await gateway.client.post(JOBS, params={"model": "tiny"}, content=b'"a"\n"b"\n', headers=headers)
    assert (second.status_code, second.headers["x-should-retry"]) == (409, "true")
    go_on.set()
    job = (await first).json()
    third = await gateway.client.post(JOBS, params={"model": "tiny"}, content=b'"a"\n"b"\n', headers=headers)
    assert (third.status_code, third.json()["id"]) == (200, job["id"])


async def test_a_request_that_failed_leaves_its_key_free(gateway: Gateway) -> None:
    assert (await send(gateway, body={"model": "tiny", "input": [""]})).status_code == 400
    assert (await send(gateway, body={"model": "nope", "input": ["a"]})).status_code == 404
    assert (await send(gateway)).status_code == 202


async def test_keys_are_a_projects_own(gateway: Gateway) -> None:
    theirs = await gateway.another_key(project="theirs")
    ours = await send(gateway)
    reply = await gateway.client.post(JOBS, json=BODY, headers={"idempotency-key": "k", **theirs})
    assert reply.status_code == 202 and reply.json()["id"] != ours.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_keys_that_are_none(gateway: Gateway, key: str) -> None:
    reply = await send(gateway, key)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "idempotency-key")


async def test_without_a_key_every_request_is_a_job(gateway: Gateway) -> None:
    for _ in range(2):
        await gateway.submit(["a"])
    assert len(await jobs(gateway)) == 2


async def test_the_key_of_a_deleted_job_is_free(gateway: Gateway) -> None:
    header = {"idempotency-key": "deleted"}
    first = await gateway.client.post(JOBS, json={"model": "tiny", "input": ["a"]}, headers=header)
    await gateway.run(first.json()["id"])
    assert (await gateway.client.delete(f"{JOBS}/{first.json()['id']}")).status_code == 200
    for texts in (["a"], ["another"]):
        again = await gateway.client.post(JOBS, json={"model": "tiny", "input": texts}, headers=header)
        assert again.status_code == 202 and again.json()["id"] != first.json()["id"]
        assert (await gateway.client.delete(f"{JOBS}/{again.json()['id']}")).status_code == 200
