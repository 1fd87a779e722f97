"""Fairness with real processes: a small job has its first result soon, however busy the workers are."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.system import oracle
from tests.system.processes import EMBEDMILL
from tests.system.stack import Stack

LATENCY_MS = 1500.0
FIRST_RESULT_S = 5.0
ALONE_S = LATENCY_MS / 1000 + 0.5


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest, sqlite_stack: Stack) -> Iterator[int]:
    """So many worker processes, and calls that take seconds."""
    processes = sqlite_stack.processes
    count: int = request.param
    processes.kill("worker")
    processes.start("worker", [*EMBEDMILL, "worker", "--concurrency", str(count)])
    sqlite_stack.latency(LATENCY_MS)
    yield count
    sqlite_stack.latency(0)
    if count != 2:
        processes.kill("worker")
        processes.start("worker", [*EMBEDMILL, "worker", "--concurrency", "2"])


def seconds_of_ten(stack: Stack, tag: str) -> float:
    """How long a job of ten inputs takes, from its submission to its end."""
    texts = oracle.corpus(tag, 10)
    submitted = time.monotonic()
    job_id = stack.submit(texts)
    stack.await_end(job_id, 60.0)
    took_s = time.monotonic() - submitted
    oracle.check(stack, job_id, texts)
    return took_s


def test_ten_inputs_beside_a_large_job(sqlite_stack: Stack, workers: int) -> None:
    stack = sqlite_stack
    # On a machine that is busy with other things, as much more is allowed as the job takes longer by itself.
    busy_s = max(0.0, seconds_of_ten(stack, f"alone {workers}") - ALONE_S)
    large = stack.submit(oracle.corpus(f"large {workers}", 6000))
    stack.await_progress(large, 1)
    took_s = seconds_of_ten(stack, f"small {workers}")
    assert stack.job(large)["finished_at"] is None
    assert stack.api.delete(f"/v1/embeddings/jobs/{large}").status_code == 200
    assert took_s < FIRST_RESULT_S + 2 * busy_s
