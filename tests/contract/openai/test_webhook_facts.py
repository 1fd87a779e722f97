"""Facts of openai_api.md, section 3.7 and 0.13, 0.15: endpoints of webhooks, their events, their signatures."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from typing import Any

import openai
import orjson
import pytest
from openai import OpenAI
from openai.types.webhooks.webhook_endpoint_with_secret import WebhookEndpointWithSecret

from tests.contract.openai.openai_server import HTTP_MODEL, OpenAIServer, Receiver, line, lines

EVENTS: list[Any] = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]
JOB_EVENTS: list[Any] = ["embedding.job.completed"]


@pytest.fixture
def endpoint(openai_server: OpenAIServer, receiver: Receiver) -> Iterator[WebhookEndpointWithSecret]:
    """An endpoint for all events of batches, which ends with the test."""
    created = openai_server.client.webhooks.create(name="hooks", url=receiver.url, event_types=EVENTS)
    yield created
    openai_server.client.webhooks.delete(created.id)


def test_an_endpoint(client: OpenAI, endpoint: WebhookEndpointWithSecret, receiver: Receiver) -> None:
    """endpoint object: its keys; signing_secret comes with the creation alone, later only a hint of it."""
    assert endpoint.object == "webhook_endpoint" and endpoint.id.startswith("we_")
    assert (endpoint.name, endpoint.url) == ("hooks", receiver.url) and set(endpoint.event_types) == set(EVENTS)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/=]+", endpoint.signing_secret)
    assert len(base64.b64decode(endpoint.signing_secret.removeprefix("whsec_"))) >= 24
    found = client.webhooks.retrieve(endpoint.id)
    assert (found.id, found.name, found.created_at) == (endpoint.id, "hooks", endpoint.created_at)
    assert "signing_secret" not in found.to_dict() and type(found.created_at) is int
    hint = found.signing_secret_hint
    assert hint and hint != endpoint.signing_secret and hint[-4:] == endpoint.signing_secret[-4:]


def test_endpoints_are_listed(client: OpenAI, receiver: Receiver) -> None:
    """GET /v1/webhook_endpoints: pages of 20 by default, and has_more."""
    made = [client.webhooks.create(name=f"{n}", url=receiver.url, event_types=EVENTS[:1]).id for n in range(21)]
    try:
        page = client.webhooks.list()
        assert len(page.data) == 20 and page.has_more is True
        seen = [each.id for each in client.webhooks.list(limit=8)]
        assert set(made) <= set(seen) and len(set(seen)) == len(seen)
    finally:
        for endpoint_id in made:
            deleted = client.webhooks.delete(endpoint_id)
            assert (deleted.object, deleted.id, deleted.deleted) == ("webhook_endpoint.deleted", endpoint_id, True)
    assert not set(made) & {each.id for each in client.webhooks.list()}


def test_an_endpoint_is_changed(client: OpenAI, endpoint: WebhookEndpointWithSecret) -> None:
    """POST /v1/webhook_endpoints/{id}: what is named is changed, all else stays."""
    changed = client.webhooks.update(endpoint.id, name="new name", event_types=EVENTS[:1])
    assert (changed.name, changed.event_types, changed.url) == ("new name", EVENTS[:1], endpoint.url)
    assert client.webhooks.retrieve(endpoint.id).name == "new name"


def test_an_endpoint_that_does_not_exist(client: OpenAI) -> None:
    """404 for each call of an endpoint that is nobody's."""
    for call in (client.webhooks.retrieve, client.webhooks.delete, client.webhooks.rotate_secret):
        with pytest.raises(openai.NotFoundError):
            call("we_" + "0" * 32)


def test_event_types(client: OpenAI) -> None:
    """GET /v1/webhook_event_types: those of batches, and ours."""
    found = client.webhooks.event_types.list()
    assert found.object == "list"
    assert {*EVENTS, "embedding.job.completed", "embedding.job.paused"} <= set(found.data)


def test_a_sample_delivery(client: OpenAI, endpoint: WebhookEndpointWithSecret, receiver: Receiver) -> None:
    """…/test: {object: webhook_endpoint.test, event_type, status_code, success: true, webhook_endpoint_id}."""
    result = client.webhooks.test(endpoint.id, event_type="batch.completed")
    assert (result.object, result.event_type, result.success) == ("webhook_endpoint.test", "batch.completed", True)
    assert (result.webhook_endpoint_id, result.status_code) == (endpoint.id, 204)
    headers, body = receiver.with_type("batch.completed")
    assert client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret).type == "batch.completed"


def test_a_completed_batch(
    openai_server: OpenAIServer, endpoint: WebhookEndpointWithSecret, receiver: Receiver
) -> None:
    """payload: {id: evt_…, object: event, created_at, type, data: {id}}; headers of Standard Webhooks."""
    batch = openai_server.run([line("a")])
    headers, body = receiver.with_type("batch.completed", batch.id)
    event = orjson.loads(body)
    assert set(event) == {"id", "object", "created_at", "type", "data"} and event["data"] == {"id": batch.id}
    assert event["object"] == "event" and event["id"].startswith("evt_") and type(event["created_at"]) is int
    names = {name.lower(): value for name, value in headers.items()}
    assert names["webhook-id"] == event["id"] and abs(int(names["webhook-timestamp"]) - time.time()) < 60
    assert all(re.fullmatch(r"v1,[A-Za-z0-9+/=]{44}", each) for each in names["webhook-signature"].split(" "))
    client = openai_server.client.with_options(webhook_secret=endpoint.signing_secret)
    unwrapped: Any = client.webhooks.unwrap(body, headers)
    assert (unwrapped.type, unwrapped.data.id) == ("batch.completed", batch.id)
    assert type(unwrapped).__name__ == "BatchCompletedWebhookEvent"


def test_a_signature_that_does_not_match(
    client: OpenAI, endpoint: WebhookEndpointWithSecret, receiver: Receiver
) -> None:
    """tolerance and signature: another body, another secret, an old timestamp or a missing header raise."""
    client.webhooks.test(endpoint.id, event_type="batch.failed")
    headers, body = receiver.with_type("batch.failed")
    secret = endpoint.signing_secret
    client.webhooks.verify_signature(body, headers, secret=secret)
    old = {name: "1000000000" if name.lower() == "webhook-timestamp" else value for name, value in headers.items()}
    other = f"whsec_{base64.b64encode(b'another secret of 24 bytes').decode()}"
    for wrong in ((body + b" ", headers, secret), (body, headers, other), (body, old, secret)):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(wrong[0], wrong[1], secret=wrong[2])
    with pytest.raises((ValueError, openai.InvalidWebhookSignatureError)):
        client.webhooks.unwrap(body, {}, secret=secret)


@pytest.mark.parametrize("keep", [True, False])
def test_a_secret_is_rotated(
    client: OpenAI, endpoint: WebhookEndpointWithSecret, receiver: Receiver, keep: bool
) -> None:
    """rotate_secret: a new secret, shown once; with keep_old_secret_active_for_24_hours both signatures are sent."""
    rotated = client.webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=keep)
    assert rotated.signing_secret != endpoint.signing_secret
    client.webhooks.test(endpoint.id, event_type="batch.expired")
    headers, body = receiver.with_type("batch.expired")
    client.webhooks.verify_signature(body, headers, secret=rotated.signing_secret)
    if keep:
        client.webhooks.verify_signature(body, headers, secret=endpoint.signing_secret)
    else:
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body, headers, secret=endpoint.signing_secret)


def test_the_other_ends_of_batches(
    openai_server: OpenAIServer, endpoint: WebhookEndpointWithSecret, receiver: Receiver
) -> None:
    """events: batch.failed, batch.cancelled and batch.expired, one for each batch."""
    failed = openai_server.create([line("a", model=None)])
    with openai_server.slow_upstream():
        cancelled = openai_server.create(lines(2, model=HTTP_MODEL, text="slow"))
        expired = openai_server.create(lines(2, model=HTTP_MODEL, text="slow"))
        openai_server.wait_for(cancelled, "in_progress")
        openai_server.wait_for(expired, "in_progress")
        openai_server.client.batches.cancel(cancelled.id)
        openai_server.expire(expired)
        for batch, status in ((failed, "failed"), (cancelled, "cancelled"), (expired, "expired")):
            openai_server.wait_for(batch, status)
            headers, body = receiver.with_type(f"batch.{status}", batch.id)
            openai_server.client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
    ids = [orjson.loads(body)["data"]["id"] for _, body in receiver.deliveries]
    assert sorted(ids) == sorted([failed.id, cancelled.id, expired.id])


def test_our_own_events(openai_server: OpenAIServer, receiver: Receiver) -> None:
    """0.13: unwrap of a type that the SDK does not know keeps .type and the data: our events work with it."""
    with openai_server.recorder() as recorder:
        client = recorder.client
        endpoint = client.webhooks.create(name="jobs", url=receiver.url, event_types=JOB_EVENTS)
        try:
            job: Any = client.post("/embeddings/jobs", body={"model": "tiny", "input": ["a"]}, cast_to=object)
            headers, body = receiver.with_type("embedding.job.completed", job["id"])
        finally:
            client.webhooks.delete(endpoint.id)
        event: Any = client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
    assert event.type == "embedding.job.completed" and event.data.id == job["id"]
