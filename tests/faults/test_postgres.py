"""A database that is restarted, cut off, slow, locked, or out of connections, while paid answers arrive."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import asyncpg
import httpx
import pytest

from engine.durability.spool import RESERVE
from tests.faults.conftest import FaultRun, lasting
from tests.services import is_away, run_async
from tests.system.cluster import ROLE, PostgresCluster
from tests.system.oracle import REPEATS_PER_KILL, corpus
from tests.system.processes import EMBEDMILL
from tests.system.running_shards import held_by, started
from tests.system.stack import WORKER, Stack, seconds_until
from tests.waiting import wait_until

QUIET_S = 2.5  # longer than a call takes in these tests
SPOOLED_S = 6.0  # longer than a worker pauses between two tries of the database
OUTAGE_S = lasting(0.0, 120.0)
LOCKED_S = lasting(6.0, 30.0)
RESTARTS = int(lasting(3, 10))
MARK_S = 15.0  # from the database's return to new results


@pytest.mark.fault(15)
@pytest.mark.timeout(120 + 30 * RESTARTS)
def test_the_database_is_restarted_under_load(stack: Stack, cluster: PostgresCluster, fault_run: FaultRun) -> None:
    stack.latency(200)
    job_id, texts = started(stack, "restarts", RESTARTS * 4_000)
    for number in range(RESTARTS):
        how = signal.SIGINT if number % 3 == 1 else signal.SIGQUIT
        time.sleep(fault_run.chance.uniform(0.0, 0.5))
        cluster.restart(how)
        before = completed(stack, job_id)
        if before < len(texts):
            fault_run.recovered(
                seconds_until(lambda before=before: completed(stack, job_id) > before, 60, "new results"),  # type: ignore[misc]
                within_s=MARK_S,
            )
    stack.await_end(job_id, 60)
    fault_run.judge(stack, job_id, texts)  # what had been paid for was kept and recorded: nothing was called again
    stack.processes.check()


def completed(stack: Stack, job_id: str) -> int:
    return int(str(stack.query(f"SELECT completed FROM jobs WHERE id = '{job_id}'")[0][0]))


@pytest.mark.fault(16)
@pytest.mark.timeout(240 + OUTAGE_S)
def test_the_database_is_away_while_paid_answers_arrive(
    stack: Stack, cluster: PostgresCluster, fault_run: FaultRun
) -> None:
    stack.latency(1_000)
    texts = corpus("away", 2_000)
    job_id = stack.submit(texts)
    wait_until(lambda: stack.stats()["in_flight"] >= 4, 20, what="calls in flight")
    cluster.stop()
    wait_until(lambda: stack.stats()["in_flight"] == 0, 20, what="their answers")
    refused = stack.api.get(f"/v1/embeddings/jobs/{job_id}")
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    time.sleep(OUTAGE_S)
    cluster.start()
    fault_run.recovered(seconds_until(lambda: completed(stack, job_id), 60, "the first results"), within_s=MARK_S)
    stack.await_end(job_id, 60)
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(16)
@pytest.mark.timeout(240 + OUTAGE_S)
def test_paid_answers_outlive_their_worker(stack: Stack, cluster: PostgresCluster, fault_run: FaultRun) -> None:
    """Spooled while the database is away; the worker that wrote them dies; another brings them in."""
    stack.latency(1_000)
    texts = corpus("spooled", 2_000)
    job_id = stack.submit(texts)
    without_database(stack, cluster)
    steady(lambda: len(spool(stack, ".spool")), SPOOLED_S)
    assert spool(stack, ".spool"), stack.processes.log_of("worker")
    time.sleep(OUTAGE_S)
    stack.restart("worker")
    cluster.start()
    fault_run.recovered(seconds_until(lambda: completed(stack, job_id), 60, "what was spooled"), within_s=30)
    stack.await_end(job_id, 60)
    wait_until(lambda: not spool(stack, ""), 20, what="an empty spool")
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(23)
def test_a_spool_file_that_was_not_finished_is_no_result(
    stack: Stack, cluster: PostgresCluster, fault_run: FaultRun, tmp_path: Path
) -> None:
    stack.processes.kill("worker")
    stack.processes.start("worker", WORKER, FAILPOINTS=f"during_spool_write=kill,times=1,shared={tmp_path}")
    stack.latency(1_000)
    texts = corpus("torn", 2_000)
    job_id = stack.submit(texts)
    without_database(stack, cluster)
    wait_until(lambda: [*tmp_path.iterdir()], 20, what="a death in the middle of a spool file")
    cluster.start()
    began = time.monotonic()
    stack.await_end(job_id, 60)
    fault_run.recovered(time.monotonic() - began, within_s=60)
    fault_run.judge(stack, job_id, texts, repeats=range(1, REPEATS_PER_KILL))
    wait_until(lambda: not spool(stack, ""), 20, what="an empty spool")
    stack.restart("worker")


@pytest.mark.fault(22)
def test_a_spool_without_room_keeps_results_in_memory(
    stack: Stack, cluster: PostgresCluster, fault_run: FaultRun
) -> None:
    folder = stack.folder / "data" / "spool"
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True, check=False, text=True
    )
    if mounted.returncode:
        is_away("a small disk", mounted.stderr.strip() or "mount failed")
    try:
        stack.latency(1_000)
        texts = corpus("no room", 2_000)
        job_id = stack.submit(texts)
        without_database(stack, cluster)
        log = stack.folder / "worker.log"
        wait_until(lambda: "the spool does not take them" in log.read_text(), 20, what="a spool that is full")
        cluster.start()
        fault_run.recovered(seconds_until(lambda: completed(stack, job_id), 60, "the first results"), within_s=MARK_S)
        stack.await_end(job_id, 60)
        assert not spool(stack, ".bad")
        fault_run.judge(stack, job_id, texts)
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def without_database(stack: Stack, cluster: PostgresCluster) -> None:
    """Stop it while calls are under way, and wait until no worker starts one any more: none can renew its lease."""
    wait_until(lambda: stack.stats()["in_flight"] >= 4, 60, what="calls in flight")
    cluster.stop()
    steady(lambda: stack.stats()["calls"], QUIET_S)
    wait_until(lambda: stack.stats()["in_flight"] == 0, 20, what="the end of the calls")


def steady(count: Callable[[], int], for_s: float) -> None:
    """Wait until a count has not changed for so long."""
    seen: list[tuple[int, float]] = [(-1, 0.0)]

    def is_steady() -> bool:
        now, value = time.monotonic(), count()
        if value != seen[0][0]:
            seen[0] = (value, now)
        return now - seen[0][1] > for_s

    wait_until(is_steady, 90, what="a count that stays")


def spool(stack: Stack, ending: str) -> list[Path]:
    """Files of results; the file that keeps room for them is none."""
    files = (stack.folder / "data" / "spool").glob("*")
    return [path for path in files if path.name.endswith(ending) and path.name != RESERVE]


@pytest.mark.fault(17)
@pytest.mark.parametrize("committed", [False, True], ids=["before it", "after it"])
def test_the_connection_is_cut_at_a_commit(stack: Stack, fault_run: FaultRun, committed: bool) -> None:
    """Nobody knows whether it happened: whoever asked reads again."""
    toxics = stack.proxies["database"].to_server
    stack.latency(100)
    job_id, texts = started(stack, f"commit {committed}")
    cuts = toxics.resets
    for number in range(1, 9):
        toxics.reset_on, toxics.reset_after_passing = b"COMMIT;", committed
        wait_until(lambda number=number: toxics.resets >= cuts + number, 20, what="a COMMIT to cut off")  # type: ignore[misc]
    answers = wait_until(lambda: stack.api.get(f"/v1/embeddings/jobs/{job_id}").status_code == 200, 20)
    assert answers
    stack.await_end(job_id, 60)
    # A lease whose renewal was cut off may have been lost with the calls under it.
    fault_run.judge(stack, job_id, texts, repeats=range(2 * REPEATS_PER_KILL))


@pytest.mark.fault(18)
def test_tables_are_locked_for_a_while(stack: Stack, fault_run: FaultRun) -> None:
    stack.latency(100)
    job_id, texts = started(stack, "locked")

    async def lock() -> None:
        """Takes the tables one after the other: where that meets a transaction in the other order, it begins again."""
        connection = await asyncpg.connect(stack.database_url)
        try:
            while True:
                with suppress(asyncpg.DeadlockDetectedError):
                    async with connection.transaction():
                        await connection.execute("LOCK TABLE jobs, shards IN ACCESS EXCLUSIVE MODE")
                        await connection.execute(f"SELECT pg_sleep({LOCKED_S})")
                    return
        finally:
            await connection.close()

    run_async(lock())
    fault_run.recovered(
        seconds_until(lambda: (stack.polled(job_id) or {}).get("finished_at"), 60, "the end"), within_s=60
    )
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(18)
def test_every_answer_of_the_database_is_late(stack: Stack, fault_run: FaultRun) -> None:
    """As late against the leases here as two seconds are against the product's own."""
    stack.latency(50)
    stack.proxies["database"].to_client.latency_s = 0.1
    stack.proxies["database"].to_client.jitter_s = 0.06
    texts = corpus("late", 2_000)
    job_id = stack.submit(texts)
    stack.await_end(job_id, 90)
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(19)
def test_there_are_no_connections_to_be_had(stack: Stack, cluster: PostgresCluster, fault_run: FaultRun) -> None:
    stack.latency(200)
    job_id, texts = started(stack, "no connections")
    database = stack.database_url.rpartition("/")[2]
    cluster.ask(f"ALTER ROLE {ROLE} CONNECTION LIMIT 1")
    try:
        cluster.ask(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}'")

        def call(number: int) -> httpx.Response:
            return stack.api.get(f"/v1/embeddings/jobs/{job_id}", timeout=30)

        with ThreadPoolExecutor(8) as threads:
            answers = [*threads.map(call, range(24))]
        assert {answer.status_code for answer in answers} <= {200, 503}
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused and all("retry-after" in answer.headers for answer in refused)
    finally:
        cluster.ask(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")
    fault_run.recovered(
        seconds_until(lambda: stack.api.get(f"/v1/embeddings/jobs/{job_id}").status_code == 200, 30, "an answer"),
        within_s=MARK_S,
    )
    stack.await_end(job_id, 60)
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(48)
def test_two_schedulers_do_nothing_twice(stack: Stack, fault_run: FaultRun) -> None:
    stack.processes.start("scheduler-2", [*EMBEDMILL, "scheduler"])
    try:
        stack.latency(100)
        job_id, texts = started(stack, "two schedulers")
        wait_until(lambda: held_by(stack, job_id), 10, what="a running shard")
        stack.restart("worker")
        stack.await_end(job_id, 60)
        fault_run.judge(stack, job_id, texts, repeats=range(2 * REPEATS_PER_KILL))
        stack.processes.check()
    finally:
        stack.processes.kill("scheduler-2")
        stack.processes.forget("scheduler-2")
