"""Callers who repeat themselves, change their minds, send poison, or send much more than others."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.faults.conftest import FaultRun, StackFactory
from tests.faults.memory import Memory
from tests.system.oracle import corpus, read_snapshot
from tests.system.processes import EMBEDMILL
from tests.system.running_shards import started
from tests.system.stack import CALLS_IN_FLIGHT, MODEL, Stack, seconds_until
from tests.waiting import wait_until

TIMES = 50
FIRST_RESULT_S = 5.0
WARM_INPUTS, LONG_INPUTS = 60_000, 100_000
MB_PER_10K = 1.0


@pytest.fixture(scope="module")
def module_stack(make_stack: StackFactory) -> Stack:
    return make_stack()


def create(stack: Stack, texts: list[Any], **headers: str) -> httpx.Response:
    body = {"model": MODEL, "input": texts}
    return stack.api.post("/v1/embeddings/jobs", content=orjson.dumps(body), headers=headers, timeout=60)


@pytest.mark.fault(39)
def test_fifty_times_the_same_request_is_one_job(stack: Stack, fault_run: FaultRun) -> None:
    texts = corpus("fifty", 20)
    before = len(stack.query("SELECT id FROM jobs"))
    with ThreadPoolExecutor(16) as threads:
        answers = [*threads.map(lambda _: create(stack, texts, **{"idempotency-key": "fifty"}), range(TIMES))]
    assert {answer.status_code for answer in answers} <= {200, 202, 409}
    ids = {answer.json()["id"] for answer in answers if answer.status_code != 409}
    assert len(ids) == 1 and len(stack.query("SELECT id FROM jobs")) == before + 1
    assert create(stack, [*texts, "other"], **{"idempotency-key": "fifty"}).status_code in (409, 422)
    [job_id] = ids
    stack.await_end(job_id, 30)
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(40)
@pytest.mark.parametrize("place", ["after_job_insert", "after_accept_commit"])
def test_the_api_is_killed_around_the_accept(stack: Stack, fault_run: FaultRun, place: str, tmp_path: Path) -> None:
    command = [*EMBEDMILL, "api", "--port", stack.url.rpartition(":")[2]]
    stack.processes.kill("api")
    stack.processes.start("api", command, FAILPOINTS=f"{place}=kill,times=1,shared={tmp_path}")
    stack.await_ready()
    before = {row[0] for row in stack.query("SELECT id FROM jobs")}
    texts, key = corpus(place, 50), {"idempotency-key": place}
    with pytest.raises(httpx.TransportError):
        create(stack, texts, **key)
    durable = {row[0] for row in stack.query("SELECT id FROM jobs")} - before
    assert len(durable) == (1 if place == "after_accept_commit" else 0)
    began = time.monotonic()
    wait_until(lambda: stack.processes.has_ended("api"), 10, what="the API's end")
    stack.revive()

    def accepted() -> str | None:
        answer = create(stack, texts, **key)
        assert answer.status_code in (200, 202, 409), answer.text
        return str(answer.json()["id"]) if answer.status_code != 409 else None

    job_id = wait_until(accepted, 30, every_s=0.25, what="the retry's acceptance")
    assert job_id
    fault_run.recovered(time.monotonic() - began, within_s=30)
    stack.await_end(job_id, 30)
    assert {row[0] for row in stack.query("SELECT id FROM jobs")} - before == {job_id}
    assert durable <= {job_id}
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(44)
@pytest.mark.parametrize("state", ["waiting", "running", "finished"])
def test_cancel_stops_the_calls_and_keeps_what_was_done(stack: Stack, fault_run: FaultRun, state: str) -> None:
    stack.latency(200)
    if state == "waiting":
        stack.processes.kill("worker")
    texts = corpus(f"cancel {state}", 3_000)
    job_id = stack.submit(texts)
    if state == "running":
        stack.await_progress(job_id, 64)
    elif state == "finished":
        stack.await_end(job_id, 60)
    calls = stack.stats()["calls"]
    answer = stack.api.post(f"/v1/embeddings/jobs/{job_id}/cancel")
    assert answer.status_code == (409 if state == "finished" else 200), answer.text
    stack.await_end(job_id, 30)
    assert stack.stats()["calls"] - calls <= 2 * CALLS_IN_FLIGHT * 2  # both children: those in flight, and their next
    done = stack.job(job_id)["counts"]["completed"]
    assert (done == len(texts)) if state == "finished" else (done < len(texts))
    snapshot = read_snapshot(stack, job_id)
    snapshot.check()
    fault_run.judge(stack, job_id, texts, failed=set(range(len(texts))) - set(snapshot.with_vector))


@pytest.mark.fault(45)
def test_a_deleted_job_stays_deleted(stack: Stack, fault_run: FaultRun) -> None:
    stack.latency(200)
    job_id, _ = started(stack, "delete")
    assert stack.api.delete(f"/v1/embeddings/jobs/{job_id}").status_code in (200, 204)
    assert stack.api.get(f"/v1/embeddings/jobs/{job_id}").status_code == 404

    def rows() -> int:
        counts = (f"SELECT count(*) FROM {table} WHERE job_id = '{job_id}'" for table in ("shards", "vectors"))
        return sum(int(stack.query(text)[0][0]) for text in counts)

    fault_run.recovered(seconds_until(lambda: rows() == 0, 60, "the removal of every row"), within_s=60)
    wait_until(lambda: stack.stats()["in_flight"] == 0, 10)
    assert rows() == 0
    # What was done before was paid for: its ledger stays.
    assert stack.query(f"SELECT count(*) > 0 FROM usage WHERE job_id = '{job_id}'")[0][0]


@pytest.mark.fault(49)
def test_ten_inputs_do_not_wait_behind_many(stack: Stack, fault_run: FaultRun) -> None:
    stack.latency(100)
    huge, _ = started(stack, "huge", 40_000)
    small_texts = corpus("small", 10)
    began = time.monotonic()
    small = stack.submit(small_texts)
    wait_until(lambda: stack.job(small)["counts"]["completed"], 30, what="the small job's first result")
    fault_run.recovered(time.monotonic() - began, within_s=FIRST_RESULT_S)
    assert stack.job(huge)["counts"]["pending"]
    fault_run.judge(stack, small, small_texts)
    assert stack.api.post(f"/v1/embeddings/jobs/{huge}/cancel").status_code == 200
    stack.await_end(huge, 30)


@pytest.mark.fault(50)
def test_memory_stays_flat_over_a_long_job(stack: Stack, fault_run: FaultRun) -> None:
    """A shorter one than bench/scale runs, with the mark of the matrix.

    The allocator keeps what buffers had at their most, up to 48 MB a process (engine/process/allocator_tuning.py).
    A job of the same kind takes them there first.
    """
    stack.latency(80)  # or most of the job is done before all of it has been read
    stack.await_end(stack.submit(corpus("warm", WARM_INPUTS)), 90)
    texts = corpus("long", LONG_INPUTS)
    memory = Memory(stack)
    job_id = stack.submit(texts)
    memory.watch(job_id, 200)
    slopes = memory.slopes_mb(after=LONG_INPUTS // 5)
    print(f"MB for each 10,000 inputs: {slopes}")
    assert len(slopes) == 3  # the API and both children, from the beginning to the end
    assert max(slopes.values()) < MB_PER_10K, slopes
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(52)
def test_texts_that_break_others_break_nothing_here(stack: Stack, fault_run: FaultRun) -> None:
    good = ["nul \u0000 nul", "line \u2028 line", "\ufeff mark", "ends in space ", "\u202e turned", "x" * 20_000]
    lines = [orjson.dumps(text) for text in good]
    lines[1:1] = [b'"lone \\ud800 surrogate"', b'""']
    answer = stack.upload([b"\n".join(lines)])
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    stack.await_end(job_id, 30)
    job = stack.job(job_id)
    assert job["counts"]["total"] == len(lines)
    snapshot = read_snapshot(stack, job_id)
    snapshot.check()
    assert set(snapshot.with_error) <= {1, 2}  # a refused line keeps its place
    texts = [good[0], "", "", *good[1:]]
    fault_run.judge(stack, job_id, texts, failed=snapshot.with_error)
