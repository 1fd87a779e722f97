"""What callers do with a job once it is there: poll its status and download its results, the API on core 0."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.bulk import JOBS
from bench.generator import Run, run_load
from bench.measure import Spread
from bench.stack import Stack

DOWNLOADS = {
    "npy": "format=npy",
    "parquet": "format=parquet",
    "arrow": "format=arrow",
    "ndjson, base64": "format=ndjson&encoding_format=base64",
    "ndjson, float": "format=ndjson",
}
POLLERS = 16


@contextmanager
def api_alone_on_core_0(stack: Stack) -> Iterator[None]:
    """Keep the API to core 0 and everything else, this process too, to core 1."""
    everywhere = set(range(os.cpu_count() or 1))
    stack.pin({"api": {0}, "": {1}})
    os.sched_setaffinity(0, {1})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)
        stack.pin({"": everywhere})


def measure_polls(stack: Stack, job_id: str, *, seconds: float, repetitions: int) -> list[dict[str, Any]]:
    """Status polls of a finished job, whole and answered 304."""
    etag = stack.api.call("GET", f"{JOBS}/{job_id}")[0].get("etag", "")
    rows = []
    with api_alone_on_core_0(stack):
        for name, extra, expect in (("GET job", {}, 200), ("GET job, If-None-Match", {"if-none-match": etag}, 304)):
            runs = [
                run_load(
                    f"{stack.api.url}{JOBS}/{job_id}",
                    method="GET",
                    headers={**stack.api.headers, **extra},
                    connections=POLLERS,
                    seconds=seconds,
                    trees=[stack.tree("api")],
                    expect=expect,
                )
                for _ in range(repetitions)
            ]
            rows.append(_row(name, runs))
    return rows


def measure_downloads(stack: Stack, job_id: str, *, count: int, repetitions: int) -> list[dict[str, Any]]:
    """One caller that downloads all results, by format."""
    rows = []
    api = stack.tree("api")
    with api_alone_on_core_0(stack):
        for name, query in DOWNLOADS.items():
            api.reset_peak_rss()
            runs = [
                run_load(
                    f"{stack.api.url}{JOBS}/{job_id}/results?{query}",
                    method="GET",
                    headers=stack.api.headers,
                    connections=1,
                    seconds=0,
                    requests=1,
                    trees=[stack.tree("api")],
                )
                for _ in range(repetitions)
            ]
            rows.append(
                {
                    "case": name,
                    "mb_per_s": Spread.of([run.mb_per_s for run in runs]),
                    "vectors_per_s": Spread.of([run.requests_per_s * count for run in runs]),
                    "api_cpu_us_per_vector": Spread.of([run.cpu_ms["api"] * 1000 / count for run in runs]),
                    "api_peak_rss_mb": max(api.peak_rss_mb().values()),
                }
            )
    return rows


def _row(name: str, runs: list[Run]) -> dict[str, Any]:
    return {
        "case": name,
        "polls_per_s": Spread.of([run.requests_per_s for run in runs]),
        "api_cpu_ms": Spread.of([run.cpu_ms["api"] for run in runs]),
        "p50_ms": Spread.of([run.p50_ms for run in runs]),
        "p99_ms": Spread.of([run.p99_ms for run in runs]),
    }
