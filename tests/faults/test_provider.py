"""A provider that refuses, fails, lies, drips and goes silent: what it costs, and that no wrong vector is kept.

What one reply is worth is judged by tests/contract and tests/integration/test_wire*.py, which are marked with their
rows; these show the same in whole jobs.
"""

from __future__ import annotations

import math
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import FaultRun, StackFactory, lasting
from tests.system.oracle import corpus, read_snapshot
from tests.system.stack import BATCH, CALLS_IN_FLIGHT, MODEL, Stack, seconds_until
from tests.waiting import wait_until

CALL_TIMEOUT_S = 2.0
SOON_S = 5.0  # to pause, to call again and to record, on a busy machine
SILENT_CALLS = 3
GROWTH_BYTES = 64 * 1024 * 1024
DATE = "HTTP date"
SHAPES = (
    *("short", "long", "duplicate_index", "missing_index", "shuffle", "wrong_width", "nan", "inf", "zero"),
    *("wrong_model", "html", "empty", "not_json", "cut_json", "floats_only"),
)


@pytest.fixture(scope="module")
def module_stack(make_stack: StackFactory) -> Stack:
    return make_stack(proxied=("upstream",), call_timeout_s=CALL_TIMEOUT_S, settings={"SHARD_ATTEMPTS": "3"})


def finished(stack: Stack, texts: list[str], timeout_s: float = 60) -> dict[str, Any]:
    job_id = stack.submit(texts)
    stack.await_end(job_id, timeout_s)
    return stack.job(job_id)


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    "hint",
    [{"retry_after": 1}, {"retry_after_ms": 700}, {"retry_after": -5}, {"retry_after": "soon"}, {"retry_after": DATE}],
    ids=["seconds", "milliseconds", "negative", "words", "date"],
)
def test_a_rate_limit_costs_neither_attempts_nor_inputs(
    stack: Stack, fault_run: FaultRun, hint: dict[str, Any]
) -> None:
    if hint.get("retry_after") == DATE:
        hint = {"retry_after": formatdate(time.time() + 3, usegmt=True)}
    is_told = hint.get("retry_after") not in (-5, "soon")  # else the gate is closed for 1, 2, 4, … s
    stack.script({"do": {"status": 429, **hint}, "times": 6 if is_told else 4})
    texts = corpus(f"429 {hint}", 600)
    job = finished(stack, texts)
    assert stack.query(f"SELECT max(attempt) FROM shards WHERE job_id = '{job['id']}'") == [(1,)]
    fault_run.judge(stack, job["id"], texts)


@pytest.mark.fault(25)
def test_a_third_of_all_calls_fail(stack: Stack, fault_run: FaultRun) -> None:
    stack.script(
        *({"when": {"probability": 0.1}, "do": {"status": status}} for status in (500, 502, 503, 529)),
        seed=fault_run.seed,
    )
    texts = corpus("thirty percent", 4_000)
    fault_run.judge(stack, finished(stack, texts, 90)["id"], texts)


@pytest.mark.fault(26)
@pytest.mark.parametrize("how", ["500", "html", "refused connections", "hang"])
def test_a_provider_that_is_down_is_waited_for(stack: Stack, fault_run: FaultRun, how: str) -> None:
    """For longer than the attempts of a shard would last: no input fails, and work goes on soon after its end."""
    texts = corpus(f"down {how}", 1_500)
    trouble = {"500": {"status": 500}, "html": {"reply": "html"}, "hang": {"fault": "hang"}}.get(how)
    if trouble is None:
        stack.proxies["upstream"].down()
    else:
        stack.script({"do": trouble})
    calls, job_id = stack.stats()["calls"], stack.submit(texts)
    wait_until(lambda: stack.job(job_id)["waiting"], 40, what="the outage to be told")
    began = time.monotonic()
    while time.monotonic() - began < lasting(20, 200):
        job = stack.job(job_id)
        assert job["counts"]["failed"] == 0 and job["status"] == "in_progress"
        time.sleep(0.1)
    waiting = job["waiting"] or {}
    assert waiting["provider"] == "up" and waiting["advice"] and waiting["next_attempt_at"] >= waiting["since"]
    # Each process may have met it with a few calls; after that there are probes only.
    assert stack.stats()["calls"] - calls <= 3 * (CALLS_IN_FLIGHT + 3) * 2 + 2 * lasting(20, 200)
    stack.proxies["upstream"].heal()
    stack.latency(0)
    recovered_s = seconds_until(lambda: stack.job(job_id)["counts"]["completed"] > 0, 40, "progress")
    fault_run.recovered(recovered_s, within_s=15.0)
    stack.await_end(job_id, 60)
    assert stack.job(job_id)["status"] == "completed"
    fault_run.judge(stack, job_id, texts, repeats=range(10_000))


@pytest.mark.fault(26)
def test_inputs_that_the_provider_always_fails_on_fail_alone(stack: Stack, fault_run: FaultRun) -> None:
    """It is no outage, for others are answered: every good input has its vector, and no other an error."""
    texts = corpus("always some", 700)
    failing = {3, 64, 65, 300, 511, 698}
    for index in failing:
        texts[index] = f"it never works {index}"
    stack.script({"when": {"contains": "it never works"}, "do": {"status": 500}})
    job = finished(stack, texts, 120)
    assert job["status"] == "completed_with_errors" and job["counts"]["failed"] == len(failing)
    assert set(read_snapshot(stack, job["id"]).with_error) == failing
    fault_run.judge(stack, job["id"], texts, failed=failing)


@pytest.mark.fault(26)
@pytest.mark.parametrize("offending_position", [0, 9])
def test_one_guilty_input_in_a_job_of_one_call_fails_alone(
    stack: Stack, fault_run: FaultRun, offending_position: int
) -> None:
    texts = corpus(f"one call {offending_position}", 10)
    texts[offending_position] = "it never works"
    stack.script({"when": {"contains": "it never works"}, "do": {"status": 500}})
    job = finished(stack, texts, 120)
    fault_run.judge(stack, job["id"], texts, failed=[offending_position])


@pytest.mark.fault(28)
@pytest.mark.parametrize("status", [400, 500])
def test_one_poison_input_costs_its_own_index_and_a_few_calls(stack: Stack, fault_run: FaultRun, status: int) -> None:
    """Refused, or failed on each time while the other inputs of the job are answered."""
    texts = corpus(f"poison {status}", 512)
    texts[200] = "poison: the guilty one"
    stack.script({"when": {"contains": "the guilty one"}, "do": {"status": status}})
    calls = stack.stats()["calls"]
    job = finished(stack, texts)
    assert job["status"] == "completed_with_errors" and job["errors"][0]["example_index"] == 200
    # A refusal is believed; a fault is proved by up to 17 trials alone, with others between.
    assert stack.stats()["calls"] - calls - len(texts) // BATCH <= 2 * math.log2(BATCH) + (
        2 * 17 if status == 500 else 2
    )
    fault_run.judge(stack, job["id"], texts, failed=[200])


@pytest.mark.fault(29)
@pytest.mark.parametrize("how", ["black hole", "connection refused"])
def test_a_provider_that_cannot_be_heard_is_waited_for_so_long(stack: Stack, fault_run: FaultRun, how: str) -> None:
    texts = corpus(how, 300)
    proxy = stack.proxies["upstream"]
    if how == "black hole":
        proxy.to_client.timeout = True
    else:
        proxy.down()
    job_id = stack.submit(texts)
    began = time.monotonic()
    answer = stack.api.post("/v1/embeddings", json={"model": MODEL, "input": "sync"}, timeout=90)
    assert answer.status_code >= 500
    assert time.monotonic() - began < 4 * (CALL_TIMEOUT_S + 8)
    proxy.heal()
    stack.await_end(job_id, 90)
    # What the black hole swallowed was billed, and the caller is charged once.
    fault_run.judge(stack, job_id, texts, repeats=range(10_000 if how == "black hole" else 1))


@pytest.mark.fault(29)
def test_calls_that_are_never_answered_end_with_their_time_and_are_told(stack: Stack, fault_run: FaultRun) -> None:
    texts = corpus("never answers", 300)
    stack.script({"do": {"fault": "hang"}, "times": SILENT_CALLS})
    began, job_id = time.monotonic(), stack.submit(texts)
    stack.await_end(job_id, 60)
    # On a busy machine a worker may be so late that a call which is made again meets the next silence.
    assert time.monotonic() - began < SILENT_CALLS * CALL_TIMEOUT_S + SOON_S
    ambiguous = stack.job(job_id)["ambiguous"]
    assert ambiguous["calls"] == SILENT_CALLS
    assert SILENT_CALLS <= ambiguous["inputs"] <= SILENT_CALLS * BATCH
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(30)
def test_an_answer_that_drips_is_cut_at_its_deadline(stack: Stack, fault_run: FaultRun) -> None:
    proxy = stack.proxies["upstream"]
    proxy.to_client.bytes_per_s, proxy.to_client.slice_bytes = 200.0, 20
    texts = corpus("drip", 200)
    began, job_id = time.monotonic(), stack.submit(texts)
    wait_until(lambda: stack.stats()["calls"] and len(stack.bill()), 20)
    wait_until(lambda: time.monotonic() - began > CALL_TIMEOUT_S + 1, 10)
    assert stack.job(job_id)["counts"]["completed"] == 0
    proxy.heal()
    stack.await_end(job_id, 90)
    fault_run.judge(stack, job_id, texts, repeats=range(10_000))


@pytest.mark.fault(31)
@pytest.mark.parametrize("how", ["reset", "close", "truncate", "limit_data", "reset by the way"])
def test_half_an_answer_is_none(stack: Stack, fault_run: FaultRun, how: str) -> None:
    proxy, texts = stack.proxies["upstream"], corpus(f"half {how}", 600)
    if how == "limit_data":
        proxy.reset()  # each connection passes half an answer and ends
        proxy.to_client.limit_bytes = 9_000
    elif how == "reset by the way":
        stack.latency(200)
    else:
        stack.script({"when": {"every": 2}, "do": {"fault": how}, "times": 5})
    job_id = stack.submit(texts)
    if how == "limit_data":
        wait_until(lambda: len(stack.bill()) and proxy.accepted > 3, 20)
    elif how == "reset by the way":
        wait_until(lambda: stack.stats()["in_flight"], 20)
        assert proxy.reset()
    proxy.heal()
    stack.await_end(job_id, 90)
    fault_run.judge(stack, job_id, texts, repeats=range(10_000))


@pytest.mark.fault(32, 33, 34)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_answer_is_never_kept(stack: Stack, fault_run: FaultRun, shape: str) -> None:
    """Now and then: what is refused is asked for again, and every input has its own vector in the end."""
    stack.script({"when": {"every": 3}, "do": {"reply": shape}, "times": 2})
    texts = corpus(f"shape {shape}", 400)
    job = finished(stack, texts, 90)
    assert job["status"] == "completed"
    # A refused answer was billed: what it was about is embedded again, by halves perhaps.
    fault_run.judge(stack, job["id"], texts, repeats=range(2 * BATCH * 2 + 1))


@pytest.mark.fault(35)
def test_an_answer_of_hundreds_of_megabytes_is_cut_off_early(stack: Stack, fault_run: FaultRun) -> None:
    texts = corpus("before the flood", 2_000)
    stack.await_end(stack.submit(texts), 60)
    before = most_memory_bytes(stack)
    stack.script({"do": {"big_body_bytes": 400_000_000}, "times": 3})
    texts = corpus("flood", 400)
    job = finished(stack, texts, 90)
    after = most_memory_bytes(stack)
    assert set(after) == set(before)  # no child was replaced
    assert max(after[pid] - before[pid] for pid in before) <= GROWTH_BYTES
    fault_run.judge(stack, job["id"], texts, repeats=range(3 * BATCH * 2 + 1))


def most_memory_bytes(stack: Stack) -> dict[int, int]:
    """The most that each worker child has ever had."""
    lines = {pid: Path(f"/proc/{pid}/status").read_text().splitlines() for pid in stack.processes.children("worker")}
    return {
        pid: int(next(line for line in each if line.startswith("VmHWM")).split()[1]) * 1024
        for pid, each in lines.items()
    }
