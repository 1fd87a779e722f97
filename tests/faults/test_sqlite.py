"""SQLite with another writer, and without room on its disk."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.conftest import FaultRun
from tests.services import is_away
from tests.system.oracle import corpus, watch_history
from tests.system.running_shards import started
from tests.system.stack import MODEL, Stack, seconds_until
from tests.waiting import wait_until

DISK_BYTES = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def module_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A whole system whose data directory is a small disk of its own; the upstream's bill is elsewhere."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "data"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder],
        capture_output=True,
        check=False,
        text=True,
    )
    if mounted.returncode:
        is_away("a small disk", mounted.stderr.strip() or "mount failed")
    try:
        with Stack(home) as stack:
            watch_history(stack)
            yield stack
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


@pytest.fixture
def stack(module_stack: Stack) -> Iterator[Stack]:
    yield module_stack
    module_stack.latency(0)
    module_stack.revive()


@pytest.mark.fault(21)
def test_another_writer_keeps_the_lock_for_a_while(stack: Stack, fault_run: FaultRun) -> None:
    stack.latency(50)
    job_id, texts = started(stack, "busy")
    path = stack.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        billed = len(stack.bill())
        wait_until(lambda: len(stack.bill()) >= billed + 4 or stack.stats()["in_flight"] == 0, 10)
        # Reading goes on meanwhile.
        assert stack.api.get(f"/v1/embeddings/jobs/{job_id}").status_code == 200
        writer.execute("ROLLBACK")
    fault_run.recovered(
        seconds_until(lambda: (stack.polled(job_id) or {}).get("finished_at"), 60, "the end"), within_s=60
    )
    fault_run.judge(stack, job_id, texts)


@pytest.mark.fault(21)
def test_the_disk_is_full_for_a_while(stack: Stack, fault_run: FaultRun) -> None:
    stack.latency(300)
    job_id, texts = started(stack, "full disk", 6_000)
    filler = stack.folder / "data" / "filler"
    fill(filler)
    try:
        refused = wait_until(lambda: refusal(stack), 20, what="a job that finds no room")
        assert refused == 503
        assert stack.api.get(f"/v1/embeddings/jobs/{job_id}").status_code == 200
    finally:
        filler.unlink()
    fault_run.recovered(
        seconds_until(lambda: (stack.polled(job_id) or {}).get("finished_at"), 90, "the end"), within_s=90
    )
    fault_run.judge(stack, job_id, texts)
    texts = corpus("room again", 200)
    again = stack.submit(texts)
    stack.await_end(again, 30)
    fault_run.judge(stack, again, texts)


def refusal(stack: Stack) -> int | None:
    """The status of a job's creation that failed; None while there was room."""
    body = {"model": MODEL, "input": [f"{number} " + "x" * 2_000 for number in range(50)]}
    answer = stack.api.post("/v1/embeddings/jobs", json=body)
    return None if answer.status_code == 202 else answer.status_code


def fill(path: Path) -> None:
    """Take what room there is."""
    with path.open("wb", buffering=0) as filler:
        for piece in (1 << 20, 1 << 12):
            try:
                while True:
                    filler.write(os.urandom(1) * piece)
            except OSError:
                continue
