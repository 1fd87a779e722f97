"""An input that kills every worker that takes it, on a machine where nothing else runs.

In a file of its own: with nothing to compare it to, an input is failed only after some 40 deaths, which take minutes.
"""

from __future__ import annotations

import pytest

from engine.jobs.maintenance.crashing_inputs import MAX_SOLO_CRASHES
from tests.faults.conftest import FaultRun, StackFactory
from tests.system.stack import WORKER, Stack

DEATH_S = 6.0  # at the most: a new child, the notice of its death, and the pause before the next try


@pytest.fixture(scope="module")
def module_stack(make_stack: StackFactory) -> Stack:
    return make_stack()


@pytest.mark.fault(2)
@pytest.mark.timeout(60 + MAX_SOLO_CRASHES * DEATH_S)
def test_an_input_that_kills_every_worker_ends_with_an_error(stack: Stack, fault_run: FaultRun) -> None:
    stack.processes.kill("worker")
    stack.processes.start("worker", WORKER, FAILPOINTS="before_upstream=kill")
    texts = ["kills whoever holds it"]
    job_id = stack.submit(texts)
    stack.await_end(job_id, MAX_SOLO_CRASHES * DEATH_S)
    assert stack.job(job_id)["status"] == "failed"
    assert [error["code"] for error in stack.job(job_id)["errors"]] == ["worker_lost"]
    fault_run.judge(stack, job_id, texts, failed=[0])
