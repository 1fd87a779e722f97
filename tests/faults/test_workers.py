"""Workers that are killed at every place where it could matter, frozen, told to stop, or wrong about the time."""

from __future__ import annotations

import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.faults.conftest import FaultRun, StackFactory, lasting
from tests.services import is_away
from tests.system.oracle import REPEATS_PER_KILL, corpus
from tests.system.running_shards import held_by, started, taken_over
from tests.system.stack import BATCH, LEASE_S, MODEL, SWEEP_S, WORKER, Stack, seconds_until
from tests.waiting import wait_until

KILLS = 2
WORKER_KILLS = int(lasting(3, 20))
RECOVERY_S = LEASE_S + SWEEP_S + 25


@pytest.fixture(scope="module")
def module_stack(make_stack: StackFactory) -> Stack:
    return make_stack(apis=2)


@pytest.fixture
def stack(stack: Stack) -> Iterator[Stack]:
    yield stack
    stack.processes.kill("worker")  # it may have settings of one test
    stack.processes.start("worker", WORKER)


def restart_worker(stack: Stack, **settings: str) -> None:
    stack.processes.kill("worker")
    stack.processes.start("worker", WORKER, **settings)


@pytest.mark.fault(1)
@pytest.mark.timeout(120 + 40 * WORKER_KILLS)
def test_workers_are_killed_again_and_again(stack: Stack, fault_run: FaultRun) -> None:
    stack.latency(300)
    job_id, texts = started(stack, "again and again", 2_700 * WORKER_KILLS)
    for _ in range(WORKER_KILLS):
        wait_until(lambda: held_by(stack, job_id), 20, what="a running shard")
        time.sleep(fault_run.chance.uniform(0.0, 0.3))
        lost = held_by(stack, job_id)
        stack.restart("worker")
        if lost:
            fault_run.recovered(
                seconds_until(lambda lost=lost: taken_over(stack, lost), RECOVERY_S, "the lost shards"),  # type: ignore[misc]
                within_s=RECOVERY_S,
            )
    stack.await_end(job_id, 120)
    # Two children each time.
    fault_run.judge(stack, job_id, texts, repeats=range(WORKER_KILLS * 2 * REPEATS_PER_KILL))


@pytest.mark.fault(3, 4)
@pytest.mark.parametrize(
    ("place", "repeats"),
    [
        ("after_claim", 0),
        ("before_upstream", 0),
        ("after_upstream_before_commit", BATCH),
        ("mid_commit", range(1, REPEATS_PER_KILL)),
        ("after_commit", range(REPEATS_PER_KILL)),  # of calls that were under way beside the record
        ("during_finalize", range(1, REPEATS_PER_KILL)),
        ("after_commit_before_ack", 0),
        ("after_publish", range(REPEATS_PER_KILL)),  # by the sibling too, whose calls are under way
    ],
)
def test_a_worker_is_killed_at(
    stack: Stack, fault_run: FaultRun, place: str, repeats: int | range, tmp_path: Path
) -> None:
    restart_worker(stack, FAILPOINTS=f"{place}=kill,times={KILLS},shared={tmp_path}", SHARD_CONCURRENCY="1")
    # More shards than messages at once: workers publish the rest.
    texts = corpus(f"killed at {place}", 6_000 if place == "after_publish" else 2_000)
    job_id = stack.submit(texts)
    began = time.monotonic()
    stack.await_end(job_id, 60)
    kills = len([*tmp_path.iterdir()])
    assert kills == (1 if place == "during_finalize" and kills == 1 else KILLS)
    fault_run.recovered(time.monotonic() - began, within_s=RECOVERY_S)
    allowed = range(repeats.start, repeats.stop * kills) if isinstance(repeats, range) else repeats * kills
    findings = fault_run.judge(stack, job_id, texts, repeats=allowed)
    # What may have been paid for twice is told: by those who come after, for the dead cannot.
    wait_until(
        lambda: stack.job(job_id)["ambiguous"]["inputs"] == findings.repeated,
        30,
        what=f"{findings.repeated} ambiguous inputs",
    )
    if place == "after_upstream_before_commit":
        assert stack.job(job_id)["ambiguous"]["calls"] == kills


@pytest.mark.fault(41)
def test_a_rolling_deploy_is_not_noticed(stack: Stack, fault_run: FaultRun) -> None:
    """Behind a load balancer, which tries the other API when one takes no connections."""
    stack.latency(100)
    job_id, texts = started(stack, "deploy", 12_000)
    stop, failures, answers = threading.Event(), [], []

    def call() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for url in sorted(stack.urls.values(), key=lambda _: fault_run.chance.random()):
                try:
                    answer = httpx.post(
                        f"{url}/v1/embeddings",
                        json={"model": MODEL, "input": f"call {number}"},
                        headers=stack.headers,
                        timeout=20,
                    )
                except httpx.ConnectError:
                    continue
                except httpx.TransportError as error:
                    failures.append(repr(error))
                    break
                answers.append(answer.status_code)
                break
            else:
                failures.append("no API took the connection")

    client = threading.Thread(target=call)
    client.start()
    try:
        for name in ("api", "worker", "api-1", "scheduler"):
            assert stack.processes.terminate(name) in (0, -signal.SIGTERM)
            stack.processes.start(name)
            if name.startswith("api"):
                url = stack.urls[name]
                wait_until(lambda url=url: answers_at(url), 30, what=f"{name}'s return")  # type: ignore[misc]
    finally:
        stop.set()
        client.join()
    stack.await_end(job_id, 60)
    assert failures == []
    assert set(answers) == {200}
    fault_run.judge(stack, job_id, texts)


def answers_at(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.fault(43)
@pytest.mark.parametrize("offset", ["+10m", "-10m"])
def test_a_workers_clock_is_wrong(stack: Stack, fault_run: FaultRun, offset: str) -> None:
    if shutil.which("faketime") is None:
        is_away("libfaketime", "no program `faketime`")
    stack.processes.kill("worker")
    stack.processes.start("worker", ["faketime", "--exclude-monotonic", "-f", offset, *WORKER])
    stack.latency(400)
    texts = corpus(f"clock {offset}", 3_000)
    job_id = stack.submit(texts)
    stack.await_end(job_id, 60)
    # No lease ran out early, and none was kept for too long.
    assert stack.query(f"SELECT max(attempt) FROM shards WHERE job_id = '{job_id}'") == [(1,)]
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(51)
def test_an_api_without_file_descriptors_recovers(stack: Stack, fault_run: FaultRun) -> None:
    pid, port = stack.processes.pid("api"), urlsplit(stack.url).port
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = open_files(pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 6, hard))
    clients = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(40)]
    try:
        wait_until(lambda: open_files(pid) >= used + 5, 30, what="every descriptor in use")
    finally:
        for client in clients:
            client.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    began = time.monotonic()
    texts = corpus("descriptors", 300)
    stack.await_ready()
    job_id = stack.submit(texts)
    fault_run.recovered(time.monotonic() - began, within_s=15)
    stack.await_end(job_id, 30)
    assert stack.processes.pid("api") == pid
    fault_run.judge(stack, job_id, texts)


def open_files(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])
