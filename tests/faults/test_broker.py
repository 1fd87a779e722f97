"""A broker that loses messages, is away, frozen, or full. The database is the truth: all of it costs time only."""

from __future__ import annotations

import os
import signal
import time

import pytest
import redis

from engine.queue.broker import BULK_QUEUE
from tests.faults.conftest import FaultRun, lasting
from tests.system.oracle import corpus
from tests.system.running_shards import held_by, started
from tests.system.stack import MODEL, SWEEP_S, WORKER, Stack, seconds_until
from tests.waiting import wait_until

OUTAGE_S = lasting(8.0, 300.0)
WORKS_AGAIN_S = 10.0
FROZEN_S = lasting(0.0, 60.0)
ACCEPTED_WITHIN_S = 1.0  # of a frozen broker


def broker(stack: Stack) -> redis.Redis:
    return redis.Redis.from_url(stack.broker_url, socket_timeout=5.0)


@pytest.mark.fault(6)
def test_messages_that_vanish_after_they_were_fetched_are_sent_again(stack: Stack, fault_run: FaultRun) -> None:
    stack.processes.kill("worker")
    texts = corpus("vanish", 2_000)
    job_id = stack.submit(texts)
    with broker(stack) as client:
        stolen = wait_until(lambda: client.lpop(f"embedmill:{BULK_QUEUE}", 100), 10, what="messages to steal")
    assert stolen
    stack.processes.start("worker")
    began = time.monotonic()
    stack.await_end(job_id, 60)
    fault_run.recovered(time.monotonic() - began, within_s=SWEEP_S + 30)
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(9)
def test_a_worker_whose_acknowledgements_were_lost_hears_messages_again(stack: Stack, fault_run: FaultRun) -> None:
    """Both children are at work when the broker goes, and are through before it comes back."""
    stack.latency(1_000)
    texts = corpus("acknowledgements", 1_000)
    job_id = stack.submit(texts)
    wait_until(lambda: len(held_by(stack, job_id)) == 2, 20, what="both children at work")
    stack.processes.kill("valkey")
    wait_until(lambda: "Couldn't ack" in log_text(stack), 30, what="an acknowledgement that is lost")
    stack.await_end(job_id, 60)
    stack.latency(0)
    stack.processes.start("valkey")
    main = stack.processes.pid("worker")
    fault_run.recovered(seconds_until(lambda: hears(stack), 60, "a message that is heard"), within_s=WORKS_AGAIN_S)
    assert stack.processes.pid("worker") == main and not stack.processes.has_ended("worker")
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(11)
@pytest.mark.timeout(120 + 2 * OUTAGE_S)
def test_a_broker_that_is_down_refuses_no_job_and_no_call(stack: Stack, fault_run: FaultRun) -> None:
    stack.latency(150)
    first, first_texts = started(stack, "before it went")
    stack.processes.kill("valkey")
    until = time.monotonic() + OUTAGE_S
    jobs: list[tuple[str, list[str]]] = []
    while time.monotonic() < until:
        texts = corpus(f"meanwhile {len(jobs)}", 100)
        jobs.append((stack.submit(texts), texts))  # 202, or it raises
        time.sleep(OUTAGE_S / 60)
        answer = stack.api.post("/v1/embeddings", json={"model": MODEL, "input": "sync"})
        assert answer.status_code == 200, answer.text
    stack.processes.start("valkey")
    began = time.monotonic()
    for job_id, _ in [(first, first_texts), *jobs]:
        stack.await_end(job_id, 90)
    fault_run.recovered(time.monotonic() - began, within_s=90)
    for job_id, texts in [(first, first_texts), *jobs[:3]]:
        fault_run.judge(stack, job_id, texts)
    wait_until(lambda: hears(stack), 60, what="a message that is heard")
    stack.processes.check()


def hears(stack: Stack) -> bool:
    """True when a new job's message reached a worker. Shards are taken unasked too, but that is said."""
    job_id = stack.submit(corpus(f"heard {time.monotonic()}", 10))
    stack.await_end(job_id, 30)
    [(shard_id,)] = stack.query(f"SELECT id FROM shards WHERE job_id = '{job_id}'")
    lines = [line for line in log_text(stack).splitlines() if str(shard_id) in line]
    return not any("taken without a message" in line for line in lines)


@pytest.mark.fault(12)
@pytest.mark.timeout(180 + FROZEN_S)
@pytest.mark.parametrize("how", ["stopped", "black hole"])
def test_a_frozen_broker_holds_up_nobody(stack: Stack, fault_run: FaultRun, how: str) -> None:
    pid, proxy = stack.processes.pid("valkey"), stack.proxies["broker"]
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    else:
        proxy.to_client.timeout = proxy.to_server.timeout = True
    try:
        texts = corpus(f"frozen broker {how}", 300)
        began = time.monotonic()
        job_id = stack.submit(texts)
        assert time.monotonic() - began < ACCEPTED_WITHIN_S
        began = time.monotonic()
        assert stack.api.post("/v1/embeddings", json={"model": MODEL, "input": "sync"}).status_code == 200
        assert time.monotonic() - began < 5.0
        time.sleep(FROZEN_S)
    finally:
        os.kill(pid, signal.SIGCONT)
        proxy.heal()
    fault_run.recovered(
        seconds_until(lambda: (stack.polled(job_id) or {}).get("finished_at"), 60, "the end"),
        within_s=60,
    )
    fault_run.judge(stack, job_id, texts)
    stack.processes.check()


@pytest.mark.fault(13)
def test_a_broker_without_memory_loses_nothing(stack: Stack, fault_run: FaultRun) -> None:
    with broker(stack) as client:
        client.config_set("maxmemory", "1")
        try:
            texts = corpus("out of memory", 1_000)
            job_id = stack.submit(texts)
            wait_until(lambda: "the broker did not take" in log_text(stack), 20, what="a ring that is refused")
        finally:
            client.config_set("maxmemory", "0")
    fault_run.recovered(
        seconds_until(lambda: (stack.polled(job_id) or {}).get("finished_at"), 60, "the end"), within_s=60
    )
    fault_run.judge(stack, job_id, texts)
    stack.processes.check()


@pytest.mark.fault(14)
def test_a_worker_that_has_gone_deaf_restarts_itself(stack: Stack, fault_run: FaultRun) -> None:
    """Alive, with a connection that nobody hears: the message queue's own client may not find out for a minute."""
    stack.processes.kill("worker")
    stack.processes.start("worker", WORKER, LEASE_S="10")
    first = corpus("heard", 200)
    stack.await_end(stack.submit(first), 60)
    main = stack.processes.pid("worker")
    assert stack.proxies["broker"].stall()
    # It claims shards without messages meanwhile: work for longer than its watchdog waits.
    stack.latency(1_000)
    texts = corpus("deaf", 20_000)
    job_id = stack.submit(texts)
    began = time.monotonic()
    wait_until(lambda: stack.processes.has_ended("worker"), 60, what="the deaf worker's end")
    fault_run.recovered(time.monotonic() - began, within_s=60)
    assert "messages do not arrive" in log_text(stack)
    stack.revive()
    assert stack.processes.pid("worker") != main
    stack.await_end(job_id, 90)
    fault_run.judge(stack, job_id, texts)


def log_text(stack: Stack) -> str:
    return "".join(path.read_text(errors="replace") for path in stack.folder.glob("*.log"))
