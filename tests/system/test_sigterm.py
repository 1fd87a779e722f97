"""SIGTERM, as every deploy sends it: workers and API end by themselves, and nothing is lost or made again."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.system.oracle import check, corpus
from tests.system.stack import MODEL, Stack
from tests.waiting import wait_until

INPUTS = 4_000


@pytest.fixture
def stack(sqlite_stack: Stack) -> Stack:
    return sqlite_stack


@pytest.mark.fault(41)
def test_a_worker_told_to_stop_loses_nothing_and_repeats_nothing(stack: Stack) -> None:
    stack.latency(150)
    texts = corpus("deploy", INPUTS)
    job_id = stack.submit(texts)
    stack.await_progress(job_id, INPUTS // 8)
    assert stack.processes.terminate("worker") == 0
    assert stack.job(job_id)["counts"]["pending"]
    assert stack.query("SELECT count(*) FROM shards WHERE state = 'running'") == [(0,)]
    assert stack.query("SELECT count(*) FROM workers") == [(0,)]
    stack.processes.start("worker")
    stack.await_end(job_id, 60)
    assert check(stack, job_id, texts).repeated == 0


def test_the_api_told_to_stop_finishes_the_requests_in_flight(stack: Stack) -> None:
    stack.latency(1_500)
    before, in_ledger = stack.stats()["calls"], sync_inputs(stack)

    def embed(number: int) -> httpx.Response:
        return stack.api.post("/v1/embeddings", json={"model": MODEL, "input": f"in flight {number}"})

    with ThreadPoolExecutor(4) as threads:
        requests = [threads.submit(embed, number) for number in range(4)]
        wait_until(lambda: stack.stats()["calls"] == before + 4, 10, what="four calls in flight")
        assert stack.processes.terminate("api") in (
            0,
            -signal.SIGTERM,
        )  # uvicorn passes the signal on once it is through
        answers = [request.result() for request in requests]
    assert [answer.status_code for answer in answers] == [200] * 4
    # What they cost was written down before the process ended.
    assert sync_inputs(stack) == in_ledger + 4
    stack.processes.start("api")
    stack.await_ready()


def test_the_scheduler_told_to_stop_ends_cleanly(stack: Stack) -> None:
    assert stack.processes.terminate("scheduler") == 0
    stack.processes.start("scheduler")


def sync_inputs(stack: Stack) -> int:
    return int(stack.query("SELECT coalesce(sum(inputs), 0) FROM usage WHERE lane = 'interactive'")[0][0])
