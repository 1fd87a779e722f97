"""`python -m bench.beside`: how soon a small job has its first result beside one that keeps all workers busy."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import orjson

from bench.bulk import ENDED, JOBS
from bench.machine import describe_machine
from bench.report import RESULTS
from bench.stack import MODEL, Stack
from bench.texts import texts


def measure(stack: Stack, *, small_jobs: int, pause_s: float) -> dict[str, Any]:
    """Submit a large job, and small ones beside it, one every `pause_s` seconds."""
    large = stack.api.json("POST", JOBS, {"model": MODEL, "input": texts(60_000)}, expect=202)["id"]
    _until(stack, large, 1)
    before, since = _completed(stack, large), time.perf_counter()
    time.sleep(small_jobs * pause_s)
    alone = (_completed(stack, large) - before) / (time.perf_counter() - since)
    before, since = _completed(stack, large), time.perf_counter()
    took = []
    for number in range(small_jobs):
        asked = time.perf_counter()
        job = stack.api.json(
            "POST", JOBS, {"model": MODEL, "input": [f"small {number} {n}" for n in range(10)]}, expect=202
        )
        _until(stack, job["id"], 1)
        took.append(time.perf_counter() - asked)
        time.sleep(max(0.0, pause_s - took[-1]))
    beside = (_completed(stack, large) - before) / (time.perf_counter() - since)
    stack.api.call("DELETE", f"{JOBS}/{large}", expect=200)
    return {
        "first_result_s": [round(each, 2) for each in took],
        "large_job_inputs_per_s_alone": round(alone, 1),
        "large_job_inputs_per_s_beside_them": round(beside, 1),
    }


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
    parser.add_argument("--pause-s", type=float, default=6.0)
    given = parser.parse_args()
    rows = []
    machine = describe_machine()
    for workers in (1, 2):
        with Stack(worker_processes=workers) as stack:
            for low_ms, jitter_ms in ((1000.0, 0.0), (1000.0, 2000.0)):
                stack.latency(low_ms, jitter_ms)
                row = {"workers": workers, "upstream_ms": f"{low_ms:.0f}-{low_ms + jitter_ms:.0f}"}
                row |= measure(stack, small_jobs=given.small_jobs, pause_s=given.pause_s)
                print(orjson.dumps(row).decode(), flush=True)
                rows.append(row)
    (RESULTS / "beside.json").write_bytes(orjson.dumps({"machine": machine, "rows": rows}, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
