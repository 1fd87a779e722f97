"""kill -9 of every process in the middle of a job: nothing is lost, and only calls in flight are made again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import httpx
import orjson
import pytest
import redis

from tests.services import PostgresServer
from tests.system import oracle
from tests.system.oracle import corpus
from tests.system.running_shards import INPUTS, frozen_worker, held_by, started, taken_over
from tests.system.stack import LEASE_S, SWEEP_S, Stack, seconds_until
from tests.waiting import wait_until

# The lease of what was lost, the sweep that finds it, and time for the work itself on a busy machine.
RECOVERY_S = LEASE_S + SWEEP_S + 20
NoteFact = Callable[[str, object], None]


Check = Callable[..., int]


@pytest.fixture
def check(stack: Stack, record_property: NoteFact) -> Check:
    """Check everything about a job, note its verdict, and tell how many inputs were embedded again."""

    def checked(job_id: str, texts: list[str], *, processes_killed: int = 0) -> int:
        findings = oracle.check(stack, job_id, texts, processes_killed=processes_killed)
        record_property("verdict", asdict(findings))
        return findings.repeated

    return checked


@pytest.fixture(autouse=True)
def slow_upstream(stack: Stack) -> None:
    """Slow enough that a job of this size is caught in the middle."""
    stack.latency(150)


def test_without_kills_nothing_is_embedded_twice(stack: Stack, check: Check) -> None:
    stack.latency(0)
    texts = corpus("calm", INPUTS)
    job_id = stack.submit(texts)
    stack.await_end(job_id, 30)
    assert check(job_id, texts) == 0


@pytest.mark.fault(2)
def test_a_worker_child_is_killed(stack: Stack, check: Check, record_property: NoteFact) -> None:
    job_id, texts = started(stack, "child")
    victim, lost = frozen_worker(stack, job_id)
    assert victim in stack.processes.children("worker")
    os.kill(victim, signal.SIGKILL)
    record_property("recovery_s", seconds_until(lambda: taken_over(stack, lost), RECOVERY_S, "the lost shard's return"))
    stack.await_end(job_id, RECOVERY_S)
    check(job_id, texts, processes_killed=1)
    stack.processes.check()


@pytest.mark.fault(5)
def test_a_worker_child_is_frozen_past_its_lease_and_wakes(
    stack: Stack, check: Check, record_property: NoteFact
) -> None:
    """Nobody can tell that it is not dead; what it brings when it wakes is late."""
    job_id, texts = started(stack, "frozen")
    victim, lost = frozen_worker(stack, job_id)
    try:
        took_s = seconds_until(lambda: taken_over(stack, lost), RECOVERY_S, "the lost shard's return")
        record_property("recovery_s", took_s)
        stack.await_end(job_id, RECOVERY_S)
    finally:
        os.kill(victim, signal.SIGCONT)
    # It works again: jobs go on until one of its shards is its own.
    others = corpus("woken", INPUTS // 2)
    other_id = stack.submit(others)
    wait_until(lambda: any(pid == victim for pid, _ in held_by(stack, other_id).values()), 20, what="the woken worker")
    stack.await_end(other_id, RECOVERY_S)
    assert check(other_id, others) == 0
    check(job_id, texts, processes_killed=1)


@pytest.mark.fault(1)
def test_the_worker_is_killed_whole(stack: Stack, check: Check, record_property: NoteFact) -> None:
    job_id, texts = started(stack, "main")
    lost = wait_until(lambda: held_by(stack, job_id), 10, what="a running shard")
    stack.restart("worker")
    record_property("recovery_s", seconds_until(lambda: taken_over(stack, lost), RECOVERY_S, "the lost shards' return"))
    stack.await_end(job_id, RECOVERY_S)
    check(job_id, texts, processes_killed=2)


@pytest.mark.fault(1)
def test_the_scheduler_is_killed_and_then_a_worker_child(stack: Stack, check: Check, record_property: NoteFact) -> None:
    job_id, texts = started(stack, "scheduler")
    stack.processes.kill("scheduler")
    victim, _ = frozen_worker(stack, job_id)
    os.kill(victim, signal.SIGKILL)
    stack.processes.start("scheduler")
    record_property("to_the_end_s", seconds_until(lambda: stack.job(job_id)["finished_at"], RECOVERY_S, "the end"))
    check(job_id, texts, processes_killed=1)


def test_the_api_is_killed_under_a_poll(stack: Stack, check: Check) -> None:
    job_id, texts = started(stack, "polling")
    broken: list[Exception] = []

    def poll() -> None:
        try:
            tag = stack.api.get(f"/v1/embeddings/jobs/{job_id}").headers["etag"]
            while True:
                answer = httpx.get(
                    f"{stack.url}/v1/embeddings/jobs/{job_id}?wait=30",
                    headers=stack.headers | {"if-none-match": tag},
                    timeout=40,
                )
                tag = answer.headers.get("etag", tag)
        except (httpx.TransportError, KeyError) as error:
            broken.append(error)

    poller = threading.Thread(target=poll)
    poller.start()
    stack.restart("api")
    poller.join(10)
    assert broken
    stack.await_ready()
    stack.await_end(job_id, RECOVERY_S)
    assert check(job_id, texts) == 0


@pytest.mark.fault(40)
def test_the_api_is_killed_during_an_upload_and_the_retry_goes_on_with_its_job(
    stack: Stack, check: Check, record_property: NoteFact
) -> None:
    tag = f"upload {time.time()}"
    texts = corpus(tag, INPUTS)
    lines = [orjson.dumps(text) + b"\n" for text in texts]
    before = jobs(stack)
    key = {"idempotency-key": tag}

    def half_then_the_kill() -> Iterator[bytes]:
        yield b"".join(lines[: INPUTS // 2])
        wait_until(lambda: jobs(stack) - before, 10, what="the first shards of the upload")
        stack.processes.kill("api")
        yield b"".join(lines[INPUTS // 2 :])

    with pytest.raises(httpx.TransportError):
        stack.upload(half_then_the_kill(), **key)
    [interrupted] = jobs(stack) - before
    stack.processes.start("api")
    stack.await_ready()

    def accepted() -> httpx.Response | None:
        answer = stack.upload([b"".join(lines)], **key)
        assert answer.status_code in (202, 409), answer.text
        return answer if answer.status_code == 202 else None

    began = time.monotonic()
    job_id = str(wait_until(accepted, RECOVERY_S, every_s=0.25, what="the key's release").json()["id"])  # type: ignore[union-attr]
    record_property("recovery_s", time.monotonic() - began)
    stack.await_end(job_id, RECOVERY_S)
    again = stack.upload([b"".join(lines)], **key)
    assert (again.status_code, again.json()["id"]) == (200, job_id)
    assert again.headers["idempotent-replayed"] == "true"
    assert job_id == interrupted and jobs(stack) - before == {job_id}
    assert check(job_id, texts) == 0


def jobs(stack: Stack) -> set[str]:
    return {row[0] for row in stack.query("SELECT id FROM jobs")}


@pytest.mark.fault(9)
def test_the_broker_is_killed_and_comes_back_with_its_log(
    stack: Stack, check: Check, record_property: NoteFact
) -> None:
    job_id, texts = started(stack, "valkey")
    stack.processes.kill("valkey")
    stack.processes.start("valkey")
    record_property("to_the_end_s", seconds_until(lambda: stack.job(job_id)["finished_at"], RECOVERY_S, "the end"))
    assert check(job_id, texts) == 0
    stack.processes.check()


@pytest.mark.fault(10)
def test_the_broker_forgets_everything(stack: Stack, check: Check, record_property: NoteFact) -> None:
    job_id, texts = started(stack, "flushall")
    with redis.Redis.from_url(stack.broker_url) as client:
        client.flushall()
    record_property("to_the_end_s", seconds_until(lambda: stack.job(job_id)["finished_at"], RECOVERY_S, "the end"))
    assert check(job_id, texts) == 0


@pytest.mark.fault(17)
@pytest.mark.parametrize("stack", ["postgres"], indirect=True)
def test_every_database_connection_is_cut(stack: Stack, check: Check) -> None:
    job_id, texts = started(stack, "connections")
    for _ in range(3):
        wait_until(lambda: PostgresServer().end_connections(stack.database_url), 10, what="connections to cut")
    # A poll may meet the outage and be told to come again; one of them is enough to renew the connections.
    wait_until(lambda: stack.api.get(f"/v1/embeddings/jobs/{job_id}").status_code == 200, 10, what="an answer")
    stack.await_end(job_id, RECOVERY_S)
    assert check(job_id, texts) == 0
