"""Receivers of webhooks that are down, slow or hostile, and processes killed around a delivery."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import FaultRun, StackFactory, lasting
from tests.system.oracle import corpus
from tests.system.processes import EMBEDMILL
from tests.system.stack import LEASE_S, WORKER, Stack
from tests.waiting import wait_until
from tests.webhook_receiver import Receiver, Reply

TIMEOUT_S = 2.0
PROMPT_S = 8.0
JOB_EVENTS = ["embedding.job.completed", "embedding.job.failed"]


@pytest.fixture(scope="module")
def module_stack(make_stack: StackFactory) -> Stack:
    settings = {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "WEBHOOK_TIMEOUT_S": f"{TIMEOUT_S:g}"}
    return make_stack(settings=settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def no_endpoints(stack: Stack) -> Iterator[None]:
    yield
    for each in stack.api.get("/v1/webhook_endpoints", params={"limit": 100}).json()["data"]:
        stack.api.delete(f"/v1/webhook_endpoints/{each['id']}").raise_for_status()


def subscribe(stack: Stack, url: str) -> dict[str, Any]:
    body = {"name": "n", "url": url, "event_types": JOB_EVENTS}
    made: dict[str, Any] = stack.api.post("/v1/webhook_endpoints", json=body).raise_for_status().json()
    return made


def deliveries(stack: Stack, endpoint_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stack.api.get(f"/v1/webhook_endpoints/{endpoint_id}/deliveries").json()["data"]
    return found


def event_ids(stack: Stack, job_id: str) -> list[str]:
    return [row[0] for row in stack.query(f"SELECT id FROM webhook_events WHERE subject_id = '{job_id}'")]


@pytest.mark.fault(46)
@pytest.mark.timeout(600)
def test_a_receiver_that_is_down_gets_its_event_when_it_is_back(
    stack: Stack, fault_run: FaultRun, receiver: Receiver
) -> None:
    receiver.stop()
    endpoint = subscribe(stack, receiver.url())
    texts = corpus("down", 500)
    job_id = stack.submit(texts)
    stack.await_end(job_id, 30)
    wait_until(lambda: [d for d in deliveries(stack, endpoint["id"]) if d["attempts"] == 1], PROMPT_S)
    wait_until(lambda: deliveries(stack, endpoint["id"])[0]["attempts"] >= lasting(1, 2), PROMPT_S)
    receiver.start()
    began = time.monotonic()
    wait_until(lambda: receiver.received, lasting(PROMPT_S, 400), what="the second attempt")
    fault_run.recovered(time.monotonic() - began, within_s=lasting(PROMPT_S, 400))
    wait_until(lambda: deliveries(stack, endpoint["id"])[0]["state"] == "delivered", PROMPT_S)
    assert receiver.ids() == event_ids(stack, job_id)
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(46)
def test_bad_receivers_delay_neither_jobs_nor_good_ones(stack: Stack, fault_run: FaultRun, receiver: Receiver) -> None:
    replies = {
        "/slow": Reply(hangs=True),
        "/500": Reply(500),
        "/410": Reply(410),
        "/redirect": Reply(307, {"location": receiver.url("/elsewhere")}),
        "/huge": Reply(endless=True),
    }
    receiver.reply = lambda received: replies.get(received.path, Reply())
    made = {path: subscribe(stack, receiver.url(path)) for path in (*replies, "/private", "/good")}
    # As if its name had changed since it was checked.
    private = made["/private"]["id"]
    stack.query(f"UPDATE webhook_endpoints SET url = 'https://10.0.0.1/' WHERE id = '{private}'")
    texts = corpus("bad receivers", 2000)
    job_id = stack.submit(texts)
    stack.await_end(job_id, 30)
    began = time.monotonic()
    wait_until(lambda: [each for each in receiver.received if each.path == "/good"], PROMPT_S, what="the good one")
    fault_run.recovered(time.monotonic() - began, within_s=PROMPT_S)

    def first_attempts() -> dict[str, dict[str, Any]] | None:
        found = {path: deliveries(stack, each["id"]) for path, each in made.items()}
        ended = [rows for rows in found.values() if rows and (rows[0]["last_error"] or rows[0]["delivered_at"])]
        return {path: rows[0] for path, rows in found.items()} if len(ended) == len(made) else None

    found = wait_until(first_attempts, 3 * PROMPT_S, what="every first attempt")
    assert found is not None
    states = {path: (each["state"], each["last_status"]) for path, each in found.items()}
    assert (states["/good"], states["/huge"]) == (("delivered", 200), ("delivered", 200))
    assert (states["/410"], states["/private"]) == (("dead", 410), ("pending", None))
    assert (states["/500"], states["/redirect"]) == (("pending", 500), ("pending", 307))
    assert "not public" in found["/private"]["last_error"] and "2 s" in found["/slow"]["last_error"]
    assert not [each for each in receiver.received if each.path == "/elsewhere"]
    assert stack.api.get(f"/v1/webhook_endpoints/{made['/410']['id']}").json()["disabled_at"]
    assert {each.id for each in receiver.received} == set(event_ids(stack, job_id))
    assert len([each for each in receiver.received if each.path == "/good"]) == 1
    other = corpus("the next job", 500)
    next_id = stack.submit(other)
    stack.await_end(next_id, 30)
    for each_id, each_texts in ((job_id, texts), (next_id, other)):
        fault_run.judge(stack, each_id, each_texts)


@pytest.mark.fault(47)
def test_a_scheduler_killed_between_the_send_and_the_mark_sends_the_same_event_again(
    stack: Stack, fault_run: FaultRun, receiver: Receiver, tmp_path: Path
) -> None:
    endpoint = subscribe(stack, receiver.url())
    stack.processes.kill("scheduler")
    failpoint = f"after_webhook_send=kill,times=1,shared={tmp_path}"
    stack.processes.start("scheduler", [*EMBEDMILL, "scheduler"], FAILPOINTS=failpoint)
    texts = corpus("sent and not marked", 500)
    job_id = stack.submit(texts)
    wait_until(lambda: stack.processes.has_ended("scheduler"), 30, what="the scheduler's end")
    began = time.monotonic()
    assert len(receiver.received) == 1
    stack.revive()
    within_s = TIMEOUT_S + LEASE_S + PROMPT_S
    wait_until(lambda: len(receiver.received) == 2, within_s, what="the second send")
    fault_run.recovered(time.monotonic() - began, within_s=within_s)
    [delivery] = wait_until(
        lambda: [each for each in deliveries(stack, endpoint["id"]) if each["state"] == "delivered"], PROMPT_S
    )
    assert receiver.ids() == [delivery["id"]] * 2 == event_ids(stack, job_id) * 2
    assert delivery["attempts"] == 2
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(47)
@pytest.mark.parametrize("place", ["mid_commit", "during_finalize", "after_commit"])
def test_a_worker_killed_around_the_end_of_a_job_leaves_one_event(
    stack: Stack, fault_run: FaultRun, receiver: Receiver, place: str, tmp_path: Path
) -> None:
    subscribe(stack, receiver.url())
    stack.processes.kill("worker")
    stack.processes.start("worker", WORKER, FAILPOINTS=f"{place}=kill,times=1,shared={tmp_path}")
    texts = corpus(place, 60)
    job_id = stack.submit(texts)
    stack.await_end(job_id, 60)
    wait_until(lambda: receiver.received, PROMPT_S, what="the event")
    assert list(tmp_path.iterdir()), "nothing was killed"
    fault_run.judge(stack, job_id, texts, repeats=range(len(texts) + 1))
    assert receiver.ids() == event_ids(stack, job_id)
    stack.restart("worker")
