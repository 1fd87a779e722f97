"""Signatures of webhooks, against the official client that receivers use."""

from __future__ import annotations

import time

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from engine.webhooks.render import event_body
from engine.webhooks.signature import check_secret, hint_of, new_secret, sign
from models.errors import InvalidInput
from models.webhook import EventType

CLIENT = OpenAI(api_key="unused", base_url="http://127.0.0.1:1")


def signed(body: bytes, *secrets: str, timestamp: int | None = None) -> dict[str, str]:
    at = int(time.time()) if timestamp is None else timestamp
    return {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(at),
        "webhook-signature": sign(secrets, event_id="evt_1", timestamp=at, body=body),
    }


@pytest.mark.parametrize("event_type", EventType)
def test_the_official_client_unwraps_every_event(event_type: EventType) -> None:
    secret = new_secret()
    body = event_body("evt_1", event_type, 1_700_000_000.7, {"id": "job_1", "name": "ñ\u2028漢"})
    event = CLIENT.webhooks.unwrap(body, signed(body, secret), secret=secret)
    assert (event.id, event.type, event.created_at) == ("evt_1", event_type, 1_700_000_000)
    assert event.object == "event" and event.data.id == "job_1"  # type: ignore[union-attr]


def test_either_secret_is_good_during_a_rotation_and_no_other() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    body = event_body("evt_1", EventType.BATCH_COMPLETED, 1.0, {"id": "batch_1"})
    headers = signed(body, new, old)
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (old, new):
        CLIENT.webhooks.verify_signature(body, headers, secret=secret)
    with pytest.raises(InvalidWebhookSignatureError):
        CLIENT.webhooks.verify_signature(body, headers, secret=other)


@pytest.mark.parametrize("change", ["body", "webhook-id", "webhook-timestamp"])
def test_nothing_that_is_signed_can_be_changed(change: str) -> None:
    secret = new_secret()
    body = event_body("evt_1", EventType.JOB_FAILED, 1.0, {"id": "job_1"})
    headers = signed(body, secret)
    if change == "body":
        body = body.replace(b"job_1", b"job_2")
    else:
        headers[change] = {"webhook-id": "evt_2", "webhook-timestamp": str(int(time.time()) + 1)}[change]
    with pytest.raises(InvalidWebhookSignatureError):
        CLIENT.webhooks.verify_signature(body, headers, secret=secret)


def test_an_old_delivery_cannot_be_played_again() -> None:
    secret, body = new_secret(), b"{}"
    with pytest.raises(InvalidWebhookSignatureError, match="too old"):
        CLIENT.webhooks.verify_signature(body, signed(body, secret, timestamp=int(time.time()) - 301), secret=secret)


def test_the_vector_of_the_specification() -> None:
    # Standard Webhooks 1.0, the example of its reference libraries.
    found = sign(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_secrets_are_long_and_different_and_shown_by_their_end() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100 and {len(each) for each in secrets} == {len("whsec_") + 44}
    secret = secrets.pop()
    assert hint_of(secret) == f"whsec_...{secret[-4:]}" and check_secret(secret, "secret") == secret


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "secret",
        "whsec_!!!!",
        "whsec_YWJj",
        "whsec_" + "A" * 200,
        "whsec_" + "ü" * 40,
        "whsec_a\x00b",
        "\ud800",
    ],
)
def test_a_secret_that_is_not_well_formed_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"webhook\.secret") as refusal:
        check_secret(text, "webhook.secret")
    assert refusal.value.param == "webhook.secret" and (len(text) < 7 or text not in refusal.value.message)
