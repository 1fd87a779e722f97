"""A bulk job from the first byte sent to the last vector readable, on all cores, and what every process spent on it."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from bench.client import BenchError
from bench.measure import CpuMeter, Spread
from bench.stack import MODEL, REPOSITORY, WIDTH, Stack
from bench.texts import text_of, write_ndjson
from providers.fake import fake_vectors

WARM_UP_INPUTS = 8192
JOBS = "/v1/embeddings/jobs"
NDJSON = {"content-type": "application/x-ndjson"}
POLL_S = 0.1  # ten polls a second cost the API well under 1 % of a core
ENDED = ("completed", "completed_with_errors", "failed", "cancelled", "expired")


def measure_bulk(stack: Stack, *, count: int, repetitions: int) -> tuple[dict[str, Any], str]:
    """Figures of jobs of `count` texts, and the id of the last one, whose vectors have all been compared."""
    run_job(stack, WARM_UP_INPUTS)
    runs = []
    job_id = ""
    for _ in range(repetitions):
        # Earlier jobs stay: clearing them away would be measured with the next.
        run, job_id = _timed_job(stack, count)
        runs.append(run)
    check_vectors(stack, job_id, count)
    floors = [_floor(stack, count) for _ in range(repetitions)]
    names = runs[0]["cpu_us"]
    return {
        "database": stack.database,
        "inputs": count,
        "vectors_per_s": Spread.of([run["vectors_per_s"] for run in runs]),
        "submit_s": Spread.of([run["submit_s"] for run in runs]),
        "cpu_us_all": Spread.of([sum(run["cpu_us"].values()) for run in runs]),
        "cpu_us_without_fake": Spread.of([sum(run["cpu_us"].values()) - run["cpu_us"]["fake"] for run in runs]),
        "cpu_us": {name: Spread.of([run["cpu_us"][name] for run in runs]) for name in names},
        "peak_rss_mb": runs[-1]["peak_rss_mb"],
        "billed_twice": [run["billed_twice"] for run in runs],
        "floor_vectors_per_s": Spread.of([count / floor["wall_s"] for floor in floors]),
        "floor_cpu_us": Spread.of([floor["cpu_s"] / count * 1e6 for floor in floors]),
        "floor_cpu_us_with_fake": Spread.of([floor["all_cpu_s"] / count * 1e6 for floor in floors]),
    }, job_id


def run_job(stack: Stack, count: int) -> str:
    """Submit `count` texts as one stream and wait for the end; returns the job's id."""
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder:
        corpus = Path(folder) / "texts.ndjson"
        write_ndjson(corpus, count)
        job = stack.api.upload(f"{JOBS}?model={quote(MODEL, safe='')}", corpus, NDJSON)
    return _until_ended(stack, job["id"], count)


def check_vectors(stack: Stack, job_id: str, count: int, *, step: int = 20_000) -> None:
    """Compare every vector of a job with the upstream's function of its text. Raises BenchError."""
    for start in range(0, count, step):
        stop = min(start + step, count)
        _, body = stack.api.call("GET", f"{JOBS}/{job_id}/results?format=npy&start={start}&stop={stop}")
        wanted = fake_vectors([text_of(number) for number in range(start, stop)], WIDTH, "bench")
        if np.load(io.BytesIO(body)).tobytes() != wanted.tobytes():
            raise BenchError(f"the vectors {start} to {stop} of {job_id} are not the upstream's, in order")


def _until_ended(stack: Stack, job_id: str, count: int) -> str:
    while (job := stack.api.json("GET", f"{JOBS}/{job_id}"))["status"] not in ENDED:
        time.sleep(POLL_S)
    if job["status"] != "completed" or job["counts"]["completed"] != count:
        raise BenchError(f"the job ended as {job['status']}: {orjson.dumps(job).decode()}\n{stack.log_of('worker')}")
    return job_id


def _timed_job(stack: Stack, count: int) -> tuple[dict[str, Any], str]:
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder:
        corpus = Path(folder) / "texts.ndjson"
        write_ndjson(corpus, count)
        billed = stack.fake.json("GET", "/__stats")["billed_inputs"]
        trees = stack.trees()
        for tree in trees:
            tree.reset_peak_rss()
        meter, started = CpuMeter(trees), time.perf_counter()
        job = stack.api.upload(f"{JOBS}?model={quote(MODEL, safe='')}", corpus, NDJSON)
        submitted_s = time.perf_counter() - started
        _until_ended(stack, job["id"], count)
        wall_s = time.perf_counter() - started
        spent = meter.spent_s()
    peaks: dict[str, float] = {}
    for tree in trees:
        of_tree = tree.peak_rss_mb()
        # A database's processes all count the memory that they share: only the largest says something.
        peaks |= {"largest of postgres": max(of_tree.values())} if tree.name == "postgres" else of_tree
    return {
        "vectors_per_s": count / wall_s,
        "submit_s": submitted_s,
        "cpu_us": {name: spent_s / count * 1e6 for name, spent_s in spent.items()},
        "peak_rss_mb": peaks,
        "billed_twice": stack.fake.json("GET", "/__stats")["billed_inputs"] - billed - count,
    }, job["id"]


def _floor(stack: Stack, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-", dir=stack.folder) as folder:
        corpus = Path(folder) / "texts.ndjson"
        write_ndjson(corpus, count)
        meter = CpuMeter([stack.tree("fake")])
        command = [sys.executable, "-m", "bench.floor", stack.fake.url, str(corpus), folder]
        ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
        if ran.returncode:
            raise BenchError(f"the floor failed:\n{ran.stderr.decode(errors='replace')}")
        said: dict[str, Any] = orjson.loads(ran.stdout)
    return said | {"all_cpu_s": said["cpu_s"] + meter.spent_s()["fake"]}
