"""`python -m bench.beside`: how soon a small job has its first result beside one that keeps all workers busy."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from bench.bulk import ENDED, JOBS, NDJSON
from bench.client import BenchError
from bench.machine import describe_machine
from bench.report import RESULTS
from bench.stack import MODEL, Stack
from bench.texts import write_ndjson

LARGE = 1_000_000
ROWS = ((1, 1000.0, 0.0), (2, 1000.0, 2000.0), (2, 500.0, 0.0))  # workers, upstream's latency, its jitter


def measure(stack: Stack, *, small_jobs: int, pause_s: float) -> dict[str, Any]:
    """Submit a job of a million inputs, and small ones beside it, one every `pause_s` seconds."""
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder:
        corpus = Path(folder) / "texts.ndjson"
        write_ndjson(corpus, LARGE)
        large = stack.api.upload(f"{JOBS}?model={quote(MODEL, safe='')}", corpus, NDJSON)["id"]
    _until(stack, large, 1)
    alone = _rate(stack, large, lambda: time.sleep(small_jobs * pause_s))
    took: list[float] = []

    def submit_small() -> None:
        for number in range(small_jobs):
            asked = time.perf_counter()
            inputs = [f"small {number} {n}" for n in range(10)]
            job = stack.api.json("POST", JOBS, {"model": MODEL, "input": inputs}, expect=202)
            _until(stack, job["id"], 1)
            took.append(time.perf_counter() - asked)
            time.sleep(max(0.0, pause_s - took[-1]))

    beside = _rate(stack, large, submit_small)
    if stack.api.json("GET", f"{JOBS}/{large}")["status"] in ENDED:
        raise BenchError("the large job was over before the small ones were")
    stack.api.call("DELETE", f"{JOBS}/{large}", expect=200)
    return {
        "first_result_s": [round(each, 2) for each in took],
        "large_job_inputs_per_s_alone": round(alone, 1),
        "large_job_inputs_per_s_beside_them": round(beside, 1),
    }


def _rate(stack: Stack, job_id: str, meanwhile: Callable[[], None]) -> float:
    before, since = _completed(stack, job_id), time.perf_counter()
    meanwhile()
    return (_completed(stack, job_id) - before) / (time.perf_counter() - since)


def _completed(stack: Stack, job_id: str) -> int:
    return int(stack.api.json("GET", f"{JOBS}/{job_id}")["counts"]["completed"])


def _until(stack: Stack, job_id: str, completed: int) -> None:
    while (job := stack.api.json("GET", f"{JOBS}/{job_id}"))["counts"]["completed"] < completed:
        if job["status"] in ENDED:
            return
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description=__doc__)
    parser.add_argument("--small-jobs", type=int, default=8)
    parser.add_argument("--pause-s", type=float, default=4.0)
    given = parser.parse_args()
    rows = []
    machine = describe_machine()
    for workers, low_ms, jitter_ms in ROWS:
        with Stack(worker_processes=workers) as stack:
            stack.latency(low_ms, jitter_ms)
            row = {"workers": workers, "upstream_ms": f"{low_ms:.0f}-{low_ms + jitter_ms:.0f}"}
            row |= measure(stack, small_jobs=given.small_jobs, pause_s=given.pause_s)
            print(orjson.dumps(row).decode(), flush=True)
            rows.append(row)
    (RESULTS / "beside.json").write_bytes(orjson.dumps({"machine": machine, "rows": rows}, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
