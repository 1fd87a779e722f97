"""Webhook endpoints, their deliveries, and the webhook of one job, as the HTTP API has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from engine.webhooks.delivery import WebhookDeliveries
from engine.webhooks.signature import new_secret
from models.key import Scope
from tests.gateway import JOBS, Gateway, close_gateway, error_of, open_gateway
from tests.waiting import until
from tests.webhook_receiver import Receiver, Reply

ENDPOINTS = "/v1/webhook_endpoints"
URL = "https://example.com/hooks"
UNKNOWN = "we_" + "0" * 32


@pytest.fixture
async def gateway(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(
        data_dir, webhook_allowed_networks="127.0.0.0/8", max_webhook_endpoints=3, webhook_timeout_s=2.0
    )
    yield gateway
    await close_gateway(gateway)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


async def make(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    body = {"name": "n", "url": URL, "event_types": ["embedding.job.completed"]} | fields
    made: dict[str, Any] = (await gateway.client.post(ENDPOINTS, json=body)).raise_for_status().json()
    return made


async def deliver(gateway: Gateway) -> None:
    """What the scheduler does."""
    deliveries = WebhookDeliveries(gateway.runtime.database, gateway.runtime.settings)
    await deliveries.send_due()
    await until(lambda: not deliveries.sending)
    await deliveries.close()


async def submit(gateway: Gateway, **fields: Any) -> httpx.Response:
    return await gateway.client.post(JOBS, json={"model": "tiny", "input": ["a", "b"]} | fields)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "name", "missing_required_parameter"),
        ({"name": "n", "url": URL}, "event_types", "missing_required_parameter"),
        ({"name": "", "url": URL, "event_types": ["batch.failed"]}, "name", "invalid_value"),
        ({"name": "n" * 257, "url": URL, "event_types": ["batch.failed"]}, "name", "invalid_value"),
        ({"name": "a\x00", "url": URL, "event_types": ["batch.failed"]}, "name", "invalid_value"),
        ({"name": "n", "url": URL, "event_types": []}, "event_types", "empty_array"),
        ({"name": "n", "url": URL, "event_types": "batch.failed"}, "event_types", "invalid_type"),
        ({"name": "n", "url": URL, "event_types": ["batch.failed", 1]}, "event_types[1]", "invalid_type"),
        ({"name": "n", "url": URL, "event_types": ["*"]}, "event_types[0]", "invalid_value"),
        ({"name": "n", "url": 1, "event_types": ["batch.failed"]}, "url", "invalid_type"),
        ({"name": "n", "url": "nonsense", "event_types": ["batch.failed"]}, "url", "invalid_webhook_url"),
        ({"name": "n", "url": "https://10.0.0.1/", "event_types": ["batch.failed"]}, "url", "invalid_webhook_url"),
        ({"name": "n", "url": URL, "event_types": ["batch.failed"], "secret": "x"}, "secret", "unknown_parameter"),
    ],
)
async def test_bodies_that_are_refused(gateway: Gateway, body: dict[str, Any], param: str, code: str) -> None:
    reply = await gateway.client.post(ENDPOINTS, json=body)
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert (await gateway.client.get(ENDPOINTS)).json()["data"] == []


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"\xff", b'{"name":"a","name":"b"}'])
async def test_bodies_that_are_no_objects(gateway: Gateway, body: bytes) -> None:
    assert (await gateway.client.post(ENDPOINTS, content=body)).status_code == 400


async def test_a_project_has_a_limited_number_of_endpoints(gateway: Gateway) -> None:
    made = [await make(gateway) for _ in range(3)]
    body = {"name": "n", "url": URL, "event_types": ["batch.failed"]}
    error = error_of(await gateway.client.post(ENDPOINTS, json=body))
    assert error["code"] == "too_many_webhook_endpoints" and "delete" in error["message"]
    other = await gateway.another_key()
    assert (await gateway.client.post(ENDPOINTS, json=body, headers=other)).status_code == 200
    await gateway.client.delete(f"{ENDPOINTS}/{made[0]['id']}")
    assert (await gateway.client.post(ENDPOINTS, json=body)).status_code == 200


async def test_unknown_foreign_and_malformed_ids_are_the_same_404(gateway: Gateway, receiver: Receiver) -> None:
    made = await make(gateway, url=receiver.url())
    await gateway.run((await submit(gateway)).json()["id"])
    await deliver(gateway)
    event_id = receiver.ids()[0]
    other = await gateway.another_key()
    calls = [
        ("GET", "", None),
        ("POST", "", {"name": "x"}),
        ("DELETE", "", None),
        ("POST", "/rotate_secret", {}),
        ("POST", "/test", {"event_type": "batch.failed"}),
        ("GET", "/deliveries", None),
        ("POST", f"/deliveries/{event_id}/replay", None),
    ]
    for method, path, body in calls:
        errors = []
        for endpoint_id, headers in ((made["id"], other), (UNKNOWN, None), ("we_x", None), ("job_" + "0" * 32, None)):
            reply = await gateway.client.request(method, f"{ENDPOINTS}/{endpoint_id}{path}", json=body, headers=headers)
            assert reply.status_code == 404, (method, path, endpoint_id)
            errors.append(error_of(reply))
        assert all(error == errors[0] for error in errors)
    assert (await gateway.client.get(f"{ENDPOINTS}/{made['id']}")).json()["name"] == "n"
    assert len(receiver.received) == 1


async def test_deliveries_are_listed_in_pages_and_replayed(gateway: Gateway, receiver: Receiver) -> None:
    made = await make(gateway, url=receiver.url("/secret-path?token=abc"))
    receiver.reply = Reply(503)
    for number in range(3):
        await gateway.run((await submit(gateway, input=[f"{number}"])).json()["id"])
    await deliver(gateway)
    path = f"{ENDPOINTS}/{made['id']}/deliveries"
    first = (await gateway.client.get(path, params={"limit": 2})).json()
    rest = (await gateway.client.get(path, params={"limit": 2, "after": first["last_id"]})).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    found = first["data"] + rest["data"]
    assert sorted(each["id"] for each in found) == sorted(receiver.ids())
    assert {(each["state"], each["attempts"], each["last_status"]) for each in found} == {("pending", 1, 503)}
    assert {each["last_error"] for each in found} == {"the receiver answered 503"}
    assert (await gateway.client.get(path, params={"state": "dead"})).json()["data"] == []
    receiver.reply = Reply()
    replayed = (await gateway.client.post(f"{path}/{found[0]['id']}/replay")).raise_for_status().json()
    assert replayed["state"] == "pending"
    await deliver(gateway)
    states = {each["id"]: each["state"] for each in (await gateway.client.get(path)).json()["data"]}
    assert states.pop(found[0]["id"]) == "delivered" and set(states.values()) == {"pending"}
    for params in ({"state": "nonsense"}, {"after": "nonsense"}, {"limit": "0"}, {"limit": "101"}, {"page": "2"}):
        assert (await gateway.client.get(path, params=params)).status_code == 400, params
    for event_id in ("evt_" + "0" * 32, "nonsense"):
        assert (await gateway.client.post(f"{path}/{event_id}/replay")).status_code == 404


async def test_a_job_has_a_webhook_of_its_own(gateway: Gateway, receiver: Receiver) -> None:
    reply = await submit(gateway, webhook={"url": receiver.url()})
    assert reply.status_code == 202
    job, webhook = reply.json(), reply.json()["webhook"]
    assert webhook["url"] == receiver.url() and webhook["secret"].startswith("whsec_")
    assert (await gateway.client.get(ENDPOINTS)).json()["data"] == []
    assert (await gateway.client.get(f"{ENDPOINTS}/{webhook['id']}")).status_code == 404
    other = await submit(gateway)
    for job_id in (job["id"], other.json()["id"]):
        assert "webhook" not in await gateway.run(job_id)
    await deliver(gateway)
    [received] = receiver.received
    assert received.event["data"] == {"id": job["id"], "status": "completed"}


async def test_a_jobs_webhook_takes_the_callers_secret_and_event_types(gateway: Gateway, receiver: Receiver) -> None:
    secret = new_secret()
    webhook = {"url": receiver.url(), "secret": secret, "event_types": ["embedding.job.paused"]}
    job = (await submit(gateway, webhook=webhook)).json()
    assert (job["webhook"]["secret"], job["webhook"]["event_types"]) == (secret, ["embedding.job.paused"])
    await gateway.client.post(f"{JOBS}/{job['id']}/pause")
    await gateway.client.post(f"{JOBS}/{job['id']}/resume")
    await gateway.run(job["id"])
    await deliver(gateway)
    assert [each.event["type"] for each in receiver.received] == ["embedding.job.paused"]


@pytest.mark.parametrize("form", ["url", "object"])
async def test_a_streamed_corpus_names_its_webhook_in_the_query(
    gateway: Gateway, receiver: Receiver, form: str
) -> None:
    secret = new_secret()
    value = receiver.url() if form == "url" else orjson.dumps({"url": receiver.url(), "secret": secret}).decode()
    headers = {"content-type": "application/x-ndjson", "idempotency-key": form}
    query = {"model": "tiny", "webhook": value}
    replies = [await gateway.client.post(JOBS, params=query, content=b'"a"\n"b"\n', headers=headers) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [202, 200]
    first, again = (reply.json()["webhook"] for reply in replies)
    assert first == again and (first["secret"] == secret) == (form == "object")  # an answer that was lost is repeated
    await gateway.run(replies[0].json()["id"])
    await deliver(gateway)
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    ("webhook", "param"),
    [
        ({"url": "https://10.0.0.1/"}, "webhook.url"),
        ({"url": "http://8.8.8.8/"}, "webhook.url"),
        ({"url": URL, "secret": "short"}, "webhook.secret"),
        ({"url": URL, "event_types": ["batch.completed"]}, "event_types[0]"),
        ({}, "webhook.url"),
        ({"url": URL, "name": "n"}, "webhook.name"),
        (URL, "webhook"),
    ],
)
async def test_webhooks_of_jobs_that_are_refused(gateway: Gateway, webhook: Any, param: str) -> None:
    for dry_run in (False, True):
        reply = await submit(gateway, webhook=webhook, dry_run=dry_run)
        assert (reply.status_code, error_of(reply)["param"]) == (400, param)
    assert (await gateway.client.get(JOBS)).json()["data"] == []


@pytest.mark.parametrize(
    "text", ["nonsense", "{", '{"url": 1}', '{"url":"https://a.example/","url":"b"}', "https://10.0.0.1/"]
)
async def test_webhooks_in_the_query_that_are_refused(gateway: Gateway, text: str) -> None:
    reply = await gateway.client.post(
        JOBS,
        params={"model": "tiny", "webhook": text},
        content=b'"a"\n',
        headers={"content-type": "application/x-ndjson"},
    )
    assert reply.status_code == 400 and str(error_of(reply)["param"]).startswith("webhook")


async def test_a_dry_run_stores_no_webhook(gateway: Gateway, receiver: Receiver) -> None:
    reply = await submit(gateway, webhook={"url": receiver.url()}, dry_run=True)
    assert reply.status_code == 200 and "webhook" not in reply.json()
    await deliver(gateway)
    assert receiver.received == []


async def test_a_key_without_the_scope_is_refused(gateway: Gateway) -> None:
    headers = await gateway.another_key(scopes=[Scope.EMBEDDINGS])
    assert (await gateway.client.get(ENDPOINTS, headers=headers)).status_code == 403
    assert (await gateway.client.get("/v1/webhook_event_types", headers=headers)).status_code == 403


async def test_a_job_of_a_file_has_a_webhook_too(gateway: Gateway, receiver: Receiver) -> None:
    upload: dict[str, Any] = {"files": {"file": ("corpus.ndjson", b'"a"\n"b"\n')}, "data": {"purpose": "user_data"}}
    file = (await gateway.client.post("/v1/files", **upload)).raise_for_status().json()
    body = {"model": "tiny", "input_file_id": file["id"], "webhook": {"url": receiver.url()}}
    reply = await gateway.client.post(JOBS, json=body)
    assert reply.status_code == 202 and reply.json()["webhook"]["secret"].startswith("whsec_")
    job_id = reply.json()["id"]
    for action in ("pause", "resume", "cancel"):
        (await gateway.client.post(f"{JOBS}/{job_id}/{action}")).raise_for_status()
    await deliver(gateway)
    told = {(each.event["type"], each.event["data"]["id"]) for each in receiver.received}
    assert told == {("embedding.job.paused", job_id), ("embedding.job.cancelled", job_id)}
