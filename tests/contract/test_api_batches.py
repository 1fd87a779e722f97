"""/v1/batches: what is created, shown, listed, cancelled and refused."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from engine.batches.composition import step_parts_of
from engine.batches.reader import LineSplitter
from engine.batches.steps import claim_step
from engine.batches.validate import validate_batch
from engine.files.composition import files_of
from engine.files.read import read_file
from engine.jobs.composition import sweep_of
from engine.webhooks.resolver import Resolver
from engine.webhooks.sender import WebhookSender
from engine.webhooks.targets import TargetPolicy
from models.batch import Batch
from models.file import File, FilePart
from models.job import IdempotencyKey, Job
from models.webhook import WebhookEndpoint
from tests.contract.batch_calls import run
from tests.gateway import JOBS, Gateway, error_of

BATCHES = "/v1/batches"
FILE = {"input_file_id": "file-abc", "endpoint": "/v1/embeddings", "completion_window": "24h"}
REQUESTS = [{"custom_id": f"r{n}", "body": {"input": f"text {n}"}} for n in range(3)]
INLINE = {"endpoint": "/v1/embeddings", "model": "tiny", "requests": REQUESTS}
KEYS = {
    "id",
    "object",
    "endpoint",
    "model",
    "errors",
    "input_file_id",
    "completion_window",
    "status",
    "output_file_id",
    "error_file_id",
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "request_counts",
    "usage",
    "metadata",
    "job_id",
    "error_count",
}


async def create(gateway: Gateway, body: object = FILE, **headers: str) -> httpx.Response:
    return await gateway.client.post(BATCHES, json=body, headers=headers)


async def batch_of(gateway: Gateway, body: object = FILE) -> dict[str, Any]:
    reply = await create(gateway, body)
    assert reply.status_code == 200, reply.text
    batch: dict[str, Any] = reply.json()
    return batch


async def validate(gateway: Gateway, batch_id: str) -> dict[str, Any]:
    step = await claim_step(gateway.runtime.store, "w")
    assert step is not None
    await validate_batch(step_parts_of(gateway.runtime), step)
    batch: dict[str, Any] = (await gateway.client.get(f"{BATCHES}/{batch_id}")).json()
    return batch


async def count(gateway: Gateway, table: Any) -> int:
    async with gateway.runtime.database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def test_an_unknown_file_makes_a_batch_that_fails_its_validation(gateway: Gateway) -> None:
    batch = await batch_of(gateway, FILE | {"metadata": {"a": "b"}})
    assert set(batch) == KEYS
    assert (batch["object"], batch["status"], batch["metadata"]) == ("batch", "validating", {"a": "b"})
    assert batch["expires_at"] - batch["created_at"] == 86400
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["usage"]["total_tokens"] == 0 and batch["errors"] is None and batch["model"] is None
    assert batch["job_id"] == batch["id"].replace("batch_", "job_")
    job = await gateway.job(batch["job_id"])
    assert (job["status"], job["metadata"]) == ("validating", {"a": "b"})
    batch = await validate(gateway, batch["id"])
    assert (batch["status"], batch["error_count"]) == ("failed", 1)
    (error,) = batch["errors"]["data"]
    assert batch["errors"]["object"] == "list" and set(error) == {"code", "message", "param", "line"}
    assert (error["code"], error["param"], error["line"]) == ("invalid_request", "file_id", None)
    assert "does not have access to it" in error["message"]
    assert (await gateway.job(batch["job_id"]))["status"] == "failed"


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"endpoint": "/v1/chat/completions"}, 400, "invalid_value", "endpoint"),
        ({"completion_window": "48"}, 400, "invalid_value", "completion_window"),
        ({"metadata": {"a": ["b"]}}, 400, "invalid_type", "metadata.a"),
        ({"metadata": "x"}, 400, "invalid_type", "metadata"),
        ({"nonsense": 1}, 400, "unknown_parameter", "nonsense"),
        ({"input_file_id": 7}, 400, "invalid_type", "input_file_id"),
        ({"requests": REQUESTS}, 400, "invalid_value", "input_file_id"),
        ({"callback_url": "http://127.0.0.1/"}, 400, "invalid_webhook_url", "callback_url"),
    ],
)
async def test_bad_requests_create_nothing(
    gateway: Gateway, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    reply = await create(gateway, FILE | change)
    error = error_of(reply)
    assert (reply.status_code, error["code"], error["param"], error["type"]) == (
        status,
        code,
        param,
        "invalid_request_error",
    )
    assert [await count(gateway, table) for table in (Batch, File, FilePart)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("body", "others"),
    [(FILE, ("model", "requests")), (INLINE, ("input_file_id",))],
    ids=["file", "inline"],
)
async def test_the_refusal_of_an_unknown_field_names_those_of_its_form(
    gateway: Gateway, body: dict[str, Any], others: tuple[str, ...]
) -> None:
    error = error_of(await create(gateway, {"nonsense": 1} | body))
    assert (error["code"], error["param"]) == ("unknown_parameter", "nonsense")
    known = error["message"].partition("known are ")[2].removesuffix(".").split(", ")
    assert {"endpoint", "completion_window", "metadata", "callback_url"} < set(known)
    assert not set(known) & set(others)
    # What it names is taken, too.
    for name in known:
        error = error_of(await create(gateway, body | {name: 7}))
        assert (error["code"], error["param"]) == ("invalid_type", name)


async def test_other_content_types_and_query_parameters_are_refused(gateway: Gateway) -> None:
    reply = await gateway.client.post(BATCHES, content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 415
    assert (await gateway.client.post(f"{BATCHES}?endpoint=x", json=FILE)).status_code == 400
    assert (await gateway.client.post(BATCHES, content=b"")).status_code == 400


async def test_unknown_batches(gateway: Gateway) -> None:
    for path in (f"{BATCHES}/batch_{'0' * 32}", f"{BATCHES}/nonsense"):
        for reply in (await gateway.client.get(path), await gateway.client.post(f"{path}/cancel")):
            assert (reply.status_code, error_of(reply)["message"][:14]) == (404, "No batch found")
    batch = await batch_of(gateway)
    other = await gateway.another_key()
    for reply in (
        await gateway.client.get(f"{BATCHES}/{batch['id']}", headers=other),
        await gateway.client.post(f"{BATCHES}/{batch['id']}/cancel", headers=other),
    ):
        assert reply.status_code == 404
    assert (await gateway.client.get(BATCHES, headers=other)).json()["data"] == []


async def test_pages(gateway: Gateway) -> None:
    empty = (await gateway.client.get(BATCHES)).json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    ids = sorted([(await batch_of(gateway))["id"] for _ in range(5)], reverse=True)
    page = (await gateway.client.get(BATCHES, params={"limit": 2})).json()
    assert [batch["id"] for batch in page["data"]] == ids[:2] == [page["first_id"], page["last_id"]]
    assert page["has_more"] is True
    page = (await gateway.client.get(BATCHES, params={"limit": 3, "after": ids[1]})).json()
    assert ([batch["id"] for batch in page["data"]], page["has_more"]) == (ids[2:], False)
    for query, param in (
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"after": "x"}, "after"),
        ({"y": 1}, "y"),
    ):
        reply = await gateway.client.get(BATCHES, params=query)
        assert (reply.status_code, error_of(reply)["param"]) == (400, param)


async def test_a_cancel_and_the_refusal_of_a_late_one(gateway: Gateway) -> None:
    batch = await batch_of(gateway)
    for _ in range(2):
        reply = await gateway.client.post(f"{BATCHES}/{batch['id']}/cancel")
        assert (reply.status_code, reply.json()["status"]) == (200, "cancelled")
        assert reply.json()["cancelling_at"] and reply.json()["cancelled_at"]
    batch = await batch_of(gateway)
    await validate(gateway, batch["id"])
    reply = await gateway.client.post(f"{BATCHES}/{batch['id']}/cancel")
    assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "false")
    assert reply.json() == {
        "error": {
            "message": "Cannot cancel a batch with status 'failed'.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }


async def test_requests_in_the_body_become_a_file(gateway: Gateway) -> None:
    batch = await batch_of(gateway, INLINE)
    assert (batch["status"], batch["completion_window"]) == ("validating", "24h")
    data = b"".join([piece async for piece in read_file(files_of(gateway.runtime), batch["input_file_id"])])
    splitter = LineSplitter(max_line_bytes=1000)
    lines = splitter.feed(data) + splitter.finish()
    assert [json.loads(line.data or b"") for line in lines] == [
        {"custom_id": each["custom_id"], "method": "POST", "url": "/v1/embeddings", "body": each["body"]}
        for each in REQUESTS
    ]
    batch = await validate(gateway, batch["id"])
    assert (batch["status"], batch["model"], batch["request_counts"]["total"]) == ("in_progress", "tiny", 3)
    assert (await gateway.job(batch["job_id"]))["model"] == "tiny"


async def test_the_file_of_requests_in_the_body_is_a_file_like_any(gateway: Gateway) -> None:
    batch = await batch_of(gateway, INLINE)
    path = f"/v1/files/{batch['input_file_id']}"
    for query in ({}, {"purpose": "batch"}):
        (listed,) = (await gateway.client.get("/v1/files", params=query)).json()["data"]
        assert listed == (await gateway.client.get(path)).json()
    assert (listed["purpose"], listed["filename"]) == ("batch", f"{batch['id']}_input.jsonl")
    other = await gateway.another_key()
    assert (await gateway.client.get("/v1/files", headers=other)).json()["data"] == []
    assert (await gateway.client.delete(path)).json()["deleted"] is True
    assert (await gateway.client.get("/v1/files")).json()["data"] == []
    await sweep_of(gateway.runtime).run()
    batch = await run(gateway, batch["id"])  # which reads it all the same
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 3, "failed": 0})
    await sweep_of(gateway.runtime).run()
    assert await count(gateway, File) == await count(gateway, FilePart) == 1  # the output alone


async def test_a_large_body_arrives_in_pieces(gateway: Gateway) -> None:
    requests = [{"custom_id": str(n), "body": {"model": "tiny", "input": ["word " * 50] * 20}} for n in range(300)]
    body = json.dumps({"requests": requests, "endpoint": "/v1/embeddings"}).encode()

    async def pieces() -> Any:
        for low in range(0, len(body), 10_007):
            yield body[low : low + 10_007]

    reply = await gateway.client.post(BATCHES, content=pieces(), headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    assert (await validate(gateway, reply.json()["id"]))["request_counts"]["total"] == 300


@pytest.mark.parametrize(
    ("requests", "code", "param"),
    [
        ([], "empty_array", "requests"),
        ([*REQUESTS, REQUESTS[1]], "duplicate_custom_id", "requests[3].custom_id"),
        ([*REQUESTS, {"custom_id": "x"}], "missing_required_parameter", "requests[3].body"),
    ],
)
async def test_bad_inline_requests_leave_nothing(gateway: Gateway, requests: Any, code: str, param: str) -> None:
    error = error_of(await create(gateway, INLINE | {"requests": requests}))
    assert (error["code"], error["param"]) == (code, param)
    assert [await count(gateway, table) for table in (Batch, File, FilePart)] == [0, 0, 0]


async def test_a_body_that_is_not_json_leaves_nothing(gateway: Gateway) -> None:
    body = json.dumps(INLINE).encode()
    for bad in (body[:-1], body + b"x", body[:-3], body.replace(b'"r1"', b'"r1')):
        reply = await gateway.client.post(BATCHES, content=bad, headers={"content-type": "application/json"})
        assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_json")
    assert [await count(gateway, table) for table in (Batch, File, FilePart)] == [0, 0, 0]


async def test_compressed_bodies(gateway: Gateway) -> None:
    packed = gzip.compress(json.dumps(INLINE).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = await gateway.client.post(BATCHES, content=packed[:-9], headers=headers)
    assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_encoding")
    assert [await count(gateway, table) for table in (Batch, File, FilePart)] == [0, 0, 0]
    reply = await gateway.client.post(BATCHES, content=packed, headers=headers)
    assert reply.status_code == 200
    assert (await validate(gateway, reply.json()["id"]))["request_counts"]["total"] == 3


async def test_a_file_that_would_be_too_large_is_refused(gateway: Gateway) -> None:
    object.__setattr__(gateway.runtime.settings, "max_file_bytes", 200)
    reply = await create(gateway, INLINE)
    assert (reply.status_code, error_of(reply)["param"]) == (413, "requests")
    assert await count(gateway, FilePart) == 0


async def test_a_key_makes_one_batch(gateway: Gateway) -> None:
    for body in (FILE, INLINE):
        key = {"idempotency-key": "k-inline" if body is INLINE else "k-file"}
        first = await create(gateway, body, **key)
        again = await create(gateway, body, **key)
        assert (first.status_code, again.status_code, again.headers["idempotent-replayed"]) == (200, 200, "true")
        assert "idempotent-replayed" not in first.headers and first.json()["id"] == again.json()["id"]
        reply = await create(gateway, body | {"metadata": {"other": "body"}}, **key)
        assert (reply.status_code, error_of(reply)["code"]) == (422, "idempotency_key_reused")
    assert await count(gateway, Batch) == 2 and await count(gateway, File) == 1


async def test_a_key_whose_request_failed_is_free_again(gateway: Gateway) -> None:
    key = {"idempotency-key": "k"}
    assert (await create(gateway, FILE | {"endpoint": "x"}, **key)).status_code == 400
    assert await count(gateway, IdempotencyKey) == 0
    assert (await create(gateway, FILE, **key)).status_code == 200


async def test_equal_keys_at_once_make_one_batch(gateway: Gateway) -> None:
    replies = await asyncio.gather(*(create(gateway, INLINE, **{"idempotency-key": "k"}) for _ in range(5)))
    assert {reply.status_code for reply in replies} <= {200, 409}
    assert len({reply.json()["id"] for reply in replies if reply.status_code == 200}) == 1
    assert [await count(gateway, table) for table in (Batch, File)] == [1, 1]


async def test_a_retry_of_an_sdk_creates_nothing_twice(gateway: Gateway) -> None:
    for body in (FILE, INLINE):
        first = await create(gateway, body)
        again = await create(gateway, body, **{"x-stainless-retry-count": "1"})
        assert first.json()["id"] == again.json()["id"] and again.headers["idempotent-replayed"] == "true"
    assert [await count(gateway, table) for table in (Batch, File)] == [2, 1]
    other = await create(gateway, FILE)  # no retry: somebody wants two
    assert other.json()["id"] != first.json()["id"]


async def test_the_key_of_a_deleted_batch_makes_a_new_one_at_the_second_try(gateway: Gateway) -> None:
    key = {"idempotency-key": "k"}
    first = (await create(gateway, FILE, **key)).json()
    await gateway.client.delete(f"{JOBS}/{first['job_id']}")
    assert (await gateway.client.get(f"{BATCHES}/{first['id']}")).status_code == 404
    reply = await create(gateway, FILE, **key)
    assert (reply.status_code, reply.headers.get("x-should-retry")) in ((409, "true"), (200, None))
    assert (await create(gateway, FILE, **key)).json()["id"] != first["id"]


async def test_a_callback_is_a_webhook_of_the_batch(gateway: Gateway) -> None:
    reply = await create(gateway, INLINE | {"callback_url": "https://192.0.2.1/"})
    assert error_of(reply)["param"] == "callback_url"  # not a public address
    batch = await batch_of(gateway, INLINE | {"callback_url": "https://93.184.216.34/hook"})
    assert batch["callback_secret"].startswith("whsec_")
    async with gateway.runtime.database.read() as connection:
        row = (await connection.execute(select(WebhookEndpoint.job_id, WebhookEndpoint.event_types))).one()
    assert row.job_id == batch["job_id"] and "batch.completed" in row.event_types
    assert "callback_secret" not in (await gateway.client.get(f"{BATCHES}/{batch['id']}")).json()


async def test_a_page_of_many_batches_is_in_order(gateway: Gateway) -> None:
    """It is read by several queries: a batch may have a thousand errors, which are in the answer."""
    ids = [(await batch_of(gateway))["id"] for _ in range(25)][::-1]
    page = (await gateway.client.get(BATCHES, params={"limit": 23})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[:23], True)
    assert (page["first_id"], page["last_id"]) == (ids[0], ids[22])
    page = (await gateway.client.get(BATCHES, params={"limit": 23, "after": page["last_id"]})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[23:], False)


async def test_the_names_of_callbacks_are_looked_up_by_the_resolver_of_the_process(gateway: Gateway) -> None:
    """Which bounds its threads: with one of its own, each request could keep a thread at a slow name server."""
    names: list[str] = []

    def lookup(host: str, port: int) -> list[str]:
        names.append(host)
        return ["93.184.216.34"]

    policy = TargetPolicy(resolver=Resolver(lookup))
    gateway.app._app.state.webhooks = WebhookSender(gateway.runtime.settings, policy=policy)  # type: ignore[attr-defined]
    await batch_of(gateway, INLINE | {"callback_url": "https://hooks.test/"})
    assert names == ["hooks.test"]


async def test_counts_climb_and_never_say_too_much(gateway: Gateway) -> None:
    requests = [{"custom_id": str(n), "body": {"model": "tiny", "input": ["a", "b"]}} for n in range(10)]
    batch = await batch_of(gateway, {"endpoint": "/v1/embeddings", "requests": requests})
    await validate(gateway, batch["id"])
    for completed, failed, counts in ((0, 0, (0, 0)), (9, 0, (0, 0)), (15, 1, (5, 1)), (18, 2, (8, 1))):
        await set_job(gateway, batch["job_id"], completed=completed, failed=failed)
        shown = (await gateway.client.get(f"{BATCHES}/{batch['id']}")).json()
        assert shown["request_counts"] == {"total": 10, "completed": counts[0], "failed": counts[1]}


async def test_a_batch_whose_job_has_ended_is_finalizing(gateway: Gateway) -> None:
    batch = await batch_of(gateway, INLINE)
    await validate(gateway, batch["id"])
    await set_job(gateway, batch["job_id"], status="completed", completed=3, finished_at=batch["created_at"] + 5.5)
    shown = (await gateway.client.get(f"{BATCHES}/{batch['id']}")).json()
    assert (shown["status"], shown["finalizing_at"]) == ("finalizing", batch["created_at"] + 5)
    assert shown["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


async def set_job(gateway: Gateway, job_id: str, **values: object) -> None:
    async with gateway.runtime.database.write() as connection:
        await connection.execute(update(Job).where(Job.id == job_id).values(**values))
