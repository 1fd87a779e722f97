"""Webhook endpoints by the official OpenAI package for Python: what `client.webhooks` offers, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from models.webhook import EventType
from tests.contract.conftest import Server
from tests.webhook_receiver import Receiver, Reply

URL = "https://example.com/hooks"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0, timeout=30.0) as client:
        yield client


def test_the_life_of_an_endpoint(client: OpenAI) -> None:
    made = client.webhooks.create(name="mine", url=URL, event_types=["batch.completed", "batch.failed"])
    assert made.object == "webhook_endpoint" and made.id.startswith("we_")
    assert (made.name, made.url, made.event_types) == ("mine", URL, ["batch.completed", "batch.failed"])
    assert made.signing_secret.startswith("whsec_") and made.updated_at == made.created_at
    assert made.signing_secret_hint == f"whsec_...{made.signing_secret[-4:]}"
    found = client.webhooks.retrieve(made.id)
    assert (found.id, found.signing_secret_hint) == (made.id, made.signing_secret_hint)
    assert "signing_secret" not in found.model_fields_set
    changed = client.webhooks.update(made.id, name="ours", event_types=["batch.expired"])
    assert (changed.name, changed.url, changed.event_types) == ("ours", URL, ["batch.expired"])
    rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret not in ("", made.signing_secret)
    again = client.webhooks.rotate_secret(made.id)
    assert again.signing_secret != rotated.signing_secret
    gone = client.webhooks.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "webhook_endpoint.deleted")
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_a_list_is_paged_through_to_its_end_newest_first(client: OpenAI) -> None:
    made = [client.webhooks.create(name=f"{n}", url=URL, event_types=["batch.failed"]).id for n in range(5)]
    listed = [each.id for each in client.webhooks.list(limit=2)]
    assert [each for each in listed if each in made] == made[::-1]
    page = client.webhooks.list(limit=2)
    assert page.has_more and len(page.data) == 2
    for endpoint_id in made:
        client.webhooks.delete(endpoint_id)
    assert not {each.id for each in client.webhooks.list()} & set(made)


def test_the_event_types(client: OpenAI) -> None:
    listed = client.webhooks.event_types.list()
    assert (listed.object, listed.data) == ("list", list(EventType))
    assert {"batch.completed", "batch.failed", "batch.expired", "batch.cancelled"} <= set(listed.data)


def test_what_cannot_be_subscribed_to_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.webhooks.create(name="n", url=URL, event_types=["batch.completed", "response.completed"])
    assert refusal.value.param == "event_types[1]" and "embedding.job.completed" in refusal.value.message


@pytest.mark.parametrize("url", ["http://8.8.8.8/", "https://10.0.0.1/", "https://[::1]/", "https://x:y@example.com/"])
def test_urls_that_are_not_sent_to(client: OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.webhooks.create(name="n", url=url, event_types=["batch.failed"])
    assert (refusal.value.param, refusal.value.code) == ("url", "invalid_webhook_url")


def test_a_test_that_reaches_nobody_is_one_call_and_says_why(client: OpenAI) -> None:
    made = client.webhooks.create(name="n", url="https://nowhere.invalid/", event_types=["batch.failed"])
    with pytest.raises(openai.BadRequestError) as refusal:
        client.with_options(max_retries=2).webhooks.test(made.id, event_type="batch.failed")
    assert refusal.value.code == "webhook_unreachable" and "does not resolve. Correct" in refusal.value.message
    client.webhooks.delete(made.id)


@pytest.mark.parametrize("status", [200, 204, 301, 500])
def test_a_test_tells_the_receivers_status(client: OpenAI, status: int) -> None:
    with Receiver() as receiver:
        receiver.reply = Reply(status)
        made = client.webhooks.create(name="n", url=receiver.url(), event_types=["batch.failed"])
        result = client.webhooks.test(made.id, event_type="batch.completed")
        assert (result.object, result.status_code, result.success) == ("webhook_endpoint.test", status, True)
        assert (result.webhook_endpoint_id, result.event_type) == (made.id, "batch.completed")
        [received] = receiver.received
        event = client.webhooks.unwrap(received.body, dict(received.headers), secret=made.signing_secret)
        assert event.type == "batch.completed" and event.data.id.startswith("batch_")
        client.webhooks.delete(made.id)
