"""How fast a corpus is taken in: a streamed body from its first byte to the 202, with nobody working on the job."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.bulk import JOBS, NDJSON
from bench.measure import CpuMeter, Spread
from bench.reading import api_alone_on_core_0
from bench.stack import MODEL, Stack
from bench.texts import write_ndjson


def measure_ingest(stack: Stack, *, count: int, repetitions: int) -> list[dict[str, Any]]:
    """Plain and gzip ndjson. Ends the stack's worker and scheduler, so it comes last."""
    stack.stop(["worker", "scheduler"])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder, api_alone_on_core_0(stack):
        for name, headers in (("ndjson", NDJSON), ("ndjson, gzip", {**NDJSON, "content-encoding": "gzip"})):
            corpus = Path(folder) / "texts"
            size = write_ndjson(corpus, count, compressed=len(headers) > 1)
            runs = [_upload(stack, corpus, headers) for _ in range(repetitions)]
            rows.append(
                {
                    "case": name,
                    "mb_per_s": Spread.of([size / run["wall_s"] / 1e6 for run in runs]),
                    "inputs_per_s": Spread.of([count / run["wall_s"] for run in runs]),
                    "api_cpu_us_per_input": Spread.of([run["api_cpu_s"] / count * 1e6 for run in runs]),
                    "all_cpu_us_per_input": Spread.of([run["all_cpu_s"] / count * 1e6 for run in runs]),
                    "api_peak_rss_mb": Spread.of([run["api_peak_rss_mb"] for run in runs]),
                }
            )
    return rows


def _upload(stack: Stack, corpus: Path, headers: dict[str, str]) -> dict[str, float]:
    api = stack.tree("api")
    api.reset_peak_rss()
    meter, started = CpuMeter(stack.trees()), time.perf_counter()
    job = stack.api.upload(f"{JOBS}?model={quote(MODEL, safe='')}", corpus, headers)
    wall_s, spent = time.perf_counter() - started, meter.spent_s()
    peak_mb = max(api.peak_rss_mb().values())
    stack.api.call("DELETE", f"{JOBS}/{job['id']}", expect=200)
    return {
        "wall_s": wall_s,
        "api_cpu_s": spent["api"],
        "all_cpu_s": sum(spent.values()),
        "api_peak_rss_mb": peak_mb,
    }
