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


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest, sqlite_stack: Stack) -> Iterator[int]:
    """So many worker processes, and calls that take seconds."""
    processes = sqlite_stack.processes
    count: int = request.param
    assert processes.terminate("worker") == 0
    processes.start("worker", [*EMBEDMILL, "worker", "--concurrency", str(count)])
    sqlite_stack.latency(LATENCY_MS)
    yield count
    sqlite_stack.latency(0)
    if count != 2:
        processes.terminate("worker")
        processes.start("worker", [*EMBEDMILL, "worker", "--concurrency", "2"])


def test_ten_inputs_beside_a_large_job(sqlite_stack: Stack, workers: int) -> None:
    stack = sqlite_stack
    large = stack.submit(oracle.corpus(f"large {workers}", 6000))
    stack.await_progress(large, 1)
    texts = oracle.corpus(f"small {workers}", 10)
    submitted = time.monotonic()
    small = stack.submit(texts)
    stack.await_end(small, FIRST_RESULT_S * 2)
    took_s = time.monotonic() - submitted
    oracle.check(stack, small, texts)
    assert stack.api.delete(f"/v1/embeddings/jobs/{large}").status_code == 200
    assert took_s < FIRST_RESULT_S
