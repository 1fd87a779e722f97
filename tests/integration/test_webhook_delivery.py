"""Delivery to a real receiver: its schedule, what each answer means, and what a receiver may not do to others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import update

from engine.observability import failpoints
from engine.webhooks import attempts
from engine.webhooks.deliveries import list_deliveries, replay
from engine.webhooks.delivery import MAX_SENDING_PER_ENDPOINT, MAX_SENDING_PER_PROJECT, WebhookDeliveries
from engine.webhooks.endpoints import delete_endpoint, get_endpoint, rotate_secret, update_endpoint
from engine.webhooks.outbox import record_event
from engine.webhooks.purge import purge_events
from engine.webhooks.schedule import DELAYS_S, JITTER
from engine.webhooks.sender import SendResult
from models.base import db_now, new_id
from models.errors import Conflict
from models.webhook import EventType, WebhookEndpoint, WebhookEvent
from tests.integration.store import Store
from tests.integration.webhooks import (
    LOOPBACK,
    all_deliveries,
    deliveries_of,
    let_time_pass,
    send_all,
    subscribe,
)
from tests.waiting import until
from tests.webhook_receiver import Receiver, Reply

CLIENT = OpenAI(api_key="unused", base_url="http://127.0.0.1:1")


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> Any:
    store = Store.open(database_url, tmp_path, webhook_allowed_networks=LOOPBACK, webhook_timeout_s=2.0)
    yield store
    await store.close()


@pytest.fixture
async def deliveries(store: Store) -> Any:
    deliveries = deliveries_of(store)
    yield deliveries
    await deliveries.close()


@pytest.fixture
def receiver() -> Any:
    with Receiver() as receiver:
        yield receiver


async def happen(store: Store, *, project: str = "p", event_type: EventType = EventType.JOB_COMPLETED) -> str:
    """Something that the project's endpoints are told. Returns the id of the event."""
    job_id = new_id("job")
    async with store.database.write() as connection:
        event_id = await record_event(connection, event_type, project=project, job_id=job_id, subject_id=job_id)
    assert event_id is not None
    return event_id


async def test_an_event_arrives_signed_as_the_official_client_wants_it(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver
) -> None:
    endpoint = await subscribe(store, receiver.url("/hook?a=b"))
    event_id = await happen(store)
    await send_all(deliveries)
    [received] = receiver.received
    event = CLIENT.webhooks.unwrap(received.body, dict(received.headers), secret=endpoint.secret)
    assert (event.id, event.type, received.id) == (event_id, "embedding.job.completed", event_id)
    assert received.path == "/hook?a=b" and received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["accept-encoding"] == "identity"
    assert received.headers["content-type"] == "application/json"
    [delivery] = await all_deliveries(store)
    assert (delivery.state, delivery.attempts, delivery.last_status) == ("delivered", 1, 200)
    assert delivery.delivered_at is not None and delivery.last_error is None
    await let_time_pass(store)
    await send_all(deliveries)
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(500), "answered 500"),
        (Reply(404), "answered 404"),
        (Reply(301, {"location": "http://127.0.0.1:1/"}), "answered 301"),
        (Reply(304), "answered 304"),
        (Reply(429, {"retry-after": "nonsense"}), "answered 429"),
        (Reply(hangs=True), "within 2 s"),
    ],
)
async def test_a_failure_is_tried_again_under_the_same_id(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver, reply: Reply, error: str
) -> None:
    endpoint = await subscribe(store, receiver.url())
    event_id = await happen(store)
    receiver.reply = reply
    await send_all(deliveries)
    [delivery] = await all_deliveries(store)
    assert (delivery.state, delivery.attempts) == ("pending", 1) and error in delivery.last_error
    assert 3.0 < delivery.next_attempt_at - delivery.now <= 5.0 * (1 + JITTER)
    receiver.reply = Reply()
    await send_all(deliveries)
    assert len(receiver.received) == 1  # it is not due yet
    await let_time_pass(store)
    await send_all(deliveries)
    assert receiver.ids() == [event_id, event_id]
    for each in receiver.received:
        CLIENT.webhooks.verify_signature(each.body, dict(each.headers), secret=endpoint.secret)
    assert [each.state for each in await all_deliveries(store)] == ["delivered"]


async def test_a_redirect_is_not_followed(store: Store, deliveries: WebhookDeliveries, receiver: Receiver) -> None:
    with Receiver() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            receiver.reply = Reply(status, {"location": elsewhere.url()})
            await subscribe(store, receiver.url(f"/{status}"))
        await happen(store)
        await send_all(deliveries)
        assert len(receiver.received) == 5 and elsewhere.received == []


async def test_a_receiver_that_is_down_for_the_whole_schedule_gets_its_event_by_a_replay(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver
) -> None:
    receiver.stop()
    endpoint = await subscribe(store, receiver.url())
    event_id = await happen(store)
    for attempt in range(1, len(DELAYS_S) + 1):
        await let_time_pass(store)
        await send_all(deliveries)
        [delivery] = await all_deliveries(store)
        assert delivery.attempts == attempt and "refused the connection" in delivery.last_error
        if attempt < len(DELAYS_S):
            wait_s = delivery.next_attempt_at - delivery.now
            assert delivery.state == "pending"
            assert DELAYS_S[attempt] - 5.0 < wait_s <= DELAYS_S[attempt] * (1 + JITTER)
    assert (delivery.state, delivery.next_attempt_at) == ("dead", None)
    await let_time_pass(store)
    receiver.start()
    await send_all(deliveries)
    assert receiver.received == []
    rows, has_more = await list_deliveries(store.database, "p", endpoint.id, limit=20, after_id=None, state="dead")
    assert [row.event_id for row in rows] == [event_id] and not has_more
    replayed = await replay(store.database, "p", endpoint.id, event_id)
    assert (replayed.state, replayed.attempts) == ("pending", 0)
    await send_all(deliveries)
    assert receiver.ids() == [event_id]
    assert [each.state for each in await all_deliveries(store)] == ["delivered"]


async def test_410_disables_the_endpoint_until_it_is_updated(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver
) -> None:
    endpoint = await subscribe(store, receiver.url())
    first, second = await happen(store), await happen(store)
    receiver.reply = Reply(410)
    due = await attempts.due_deliveries(store.database, busy_endpoints=[], busy_projects=[], limit=1)
    claimed = await attempts.claim(store.database, store.runtime.settings, due[0])
    assert claimed is not None
    result = await deliveries._sender.send(claimed.url, claimed.secrets, event_id=first, body=claimed.body)
    await attempts.finish(store.database, claimed, result)
    assert {each.state for each in await all_deliveries(store)} == {"dead"}
    disabled = await get_endpoint(store.database, "p", endpoint.id)
    assert disabled.disabled_at is not None and "410" in disabled.disabled_reason
    async with store.database.write() as connection:  # it subscribes to nothing while it is disabled
        nobody = await record_event(connection, EventType.JOB_FAILED, project="p", job_id="job_1", subject_id="job_1")
    assert nobody is None
    with pytest.raises(Conflict, match="disabled"):
        await replay(store.database, "p", endpoint.id, second)
    receiver.reply = Reply()
    await update_endpoint(store.database, "p", endpoint.id, name=None, url=None, event_types=None)
    await replay(store.database, "p", endpoint.id, second)
    await send_all(deliveries)
    assert receiver.ids() == [first, second]


async def test_several_answers_410_of_one_receiver_at_once_disable_it(store: Store) -> None:
    """Each of them changes the endpoint and all its deliveries: in one order, or they would wait for each other."""
    endpoint = await subscribe(store, "https://127.0.0.1:1")
    settings = store.runtime.settings
    for _ in range(5):
        for _ in range(MAX_SENDING_PER_ENDPOINT):
            await happen(store)
        due = await attempts.due_deliveries(store.database, busy_endpoints=[], busy_projects=[], limit=64)
        claimed = [await attempts.claim(store.database, settings, each) for each in due]
        gone = SendResult(status=410, error="the receiver answered 410")
        await asyncio.gather(*(attempts.finish(store.database, each, gone) for each in claimed if each is not None))
        assert len(claimed) == MAX_SENDING_PER_ENDPOINT
        assert {row.state for row in await all_deliveries(store)} == {"dead"}
        endpoint = await get_endpoint(store.database, "p", endpoint.id)
        assert endpoint.disabled_at is not None
        await update_endpoint(store.database, "p", endpoint.id, name=None, url=None, event_types=None)


@pytest.mark.parametrize(
    ("retry_after", "low_s", "high_s"),
    [
        ("120", 115, 120),
        ("1", 3, 5.5),
        ("0", 3, 5.5),
        ("-5", 3, 5.5),
        ("nan", 3, 5.5),
        ("inf", 86_390, 86_400),
        ("1e300", 86_390, 86_400),
        ("99999999", 86_390, 86_400),
        ("soon", 3, 5.5),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 86_390, 86_400),
        ("Wed, 21 Oct 1999 07:28:00 GMT", 3, 5.5),
    ],
)
async def test_retry_after_is_honoured_within_bounds(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver, retry_after: str, low_s: float, high_s: float
) -> None:
    await subscribe(store, receiver.url())
    await happen(store)
    receiver.reply = Reply(503, {"retry-after": retry_after})
    await send_all(deliveries)
    [delivery] = await all_deliveries(store)
    assert low_s <= delivery.next_attempt_at - delivery.now <= high_s


async def test_an_answer_without_an_end_is_not_read(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver
) -> None:
    await subscribe(store, receiver.url())
    await happen(store)
    receiver.reply = Reply(endless=True)
    await asyncio.wait_for(send_all(deliveries), 10)
    [delivery] = await all_deliveries(store)
    assert delivery.state == "delivered" and receiver.body_bytes_sent < 16 * 1024 * 1024


@pytest.mark.parametrize("by", ["endpoint", "project"])
async def test_a_slow_receiver_delays_nobody_else(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver, by: str
) -> None:
    with Receiver() as slow:
        slow.reply = Reply(hangs=True)
        endpoints = 1 if by == "endpoint" else 30
        for number in range(endpoints):
            await subscribe(store, slow.url(f"/{number}"), project="slow")
        await subscribe(store, receiver.url())
        for _ in range(80 // endpoints + 1):
            await happen(store, project="slow")
        event_id = await happen(store)  # due after all of those
        await asyncio.wait_for(deliveries.send_due(), 10)
        await until(lambda: receiver.ids() == [event_id], 1.5, what="the other project's event")
        limit = MAX_SENDING_PER_ENDPOINT if by == "endpoint" else MAX_SENDING_PER_PROJECT
        assert len(slow.received) <= limit
        slow.stop()
        await until(lambda: not deliveries.sending)


async def test_two_schedulers_send_each_event_once(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver
) -> None:
    await subscribe(store, receiver.url())
    ids = [await happen(store) for _ in range(20)]
    other = store.another()
    others = deliveries_of(other)
    try:
        while any(each.state == "pending" for each in await all_deliveries(store)):
            await asyncio.gather(send_all(deliveries), send_all(others))
    finally:
        await others.close()
        await other.close()
    assert sorted(receiver.ids()) == sorted(ids)


async def test_an_attempt_whose_end_was_not_marked_is_made_again_under_the_same_id(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver
) -> None:
    await subscribe(store, receiver.url())
    event_id = await happen(store)
    failpoints.arm("after_webhook_send=raise,times=1")
    try:
        await send_all(deliveries)
    finally:
        failpoints.arm("")
    await send_all(deliveries)
    assert receiver.ids() == [event_id]  # its lease has not run out
    await let_time_pass(store, leases=True)
    await send_all(deliveries)
    assert receiver.ids() == [event_id, event_id]
    [delivery] = await all_deliveries(store)
    assert (delivery.state, delivery.attempts) == ("delivered", 2)


async def test_a_late_failure_does_not_undo_a_receipt(store: Store, receiver: Receiver) -> None:
    await subscribe(store, receiver.url())
    await happen(store)
    settings = store.runtime.settings
    claims = []
    for _ in range(2):
        [due] = await attempts.due_deliveries(store.database, busy_endpoints=[], busy_projects=[], limit=5)
        claims.append(await attempts.claim(store.database, settings, due))
        assert await attempts.claim(store.database, settings, due) is None
        await let_time_pass(store, leases=True)
    first, second = claims
    assert first is not None and second is not None
    await attempts.finish(store.database, second, SendResult(200))
    await attempts.finish(store.database, first, SendResult(error="it timed out"))
    assert [each.state for each in await all_deliveries(store)] == ["delivered"]


async def test_during_a_rotation_both_secrets_are_good_and_then_the_new_one_alone(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver
) -> None:
    endpoint = await subscribe(store, receiver.url())
    rotated = await rotate_secret(store.database, "p", endpoint.id, keep_old=True)
    await happen(store)
    await send_all(deliveries)
    async with store.database.write() as connection:
        await connection.execute(update(WebhookEndpoint).values(previous_secret_until=db_now() - 1.0))
    await happen(store)
    await send_all(deliveries)
    both, new_alone = receiver.received
    for secret in (endpoint.secret, rotated.secret):
        CLIENT.webhooks.verify_signature(both.body, dict(both.headers), secret=secret)
    assert new_alone.headers["webhook-signature"].count("v1,") == 1
    CLIENT.webhooks.verify_signature(new_alone.body, dict(new_alone.headers), secret=rotated.secret)


async def test_a_deleted_endpoint_gets_nothing_more(
    store: Store, deliveries: WebhookDeliveries, receiver: Receiver
) -> None:
    endpoint = await subscribe(store, receiver.url())
    await happen(store)
    await delete_endpoint(store.database, "p", endpoint.id)
    await send_all(deliveries)
    assert receiver.received == [] and await all_deliveries(store) == []


async def test_old_events_go_with_their_deliveries(store: Store) -> None:
    await subscribe(store, "https://receiver.example/")
    old, new = await happen(store), await happen(store)
    async with store.database.write() as connection:
        await connection.execute(
            update(WebhookEvent).where(WebhookEvent.id == old).values(created_at=db_now() - 31 * 86_400.0)
        )
    await purge_events(store.database, store.runtime.settings)
    assert [each.event_id for each in await all_deliveries(store)] == [new]
