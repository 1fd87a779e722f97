"""How well a quota is used and kept: `python -m bench.pacing`, real processes against a fake that counts a minute.

The fake upstream allows 600 requests and 1,000,000 tokens in any 60 s, and answers 429 beyond that. Four worker
processes run one big job; sync calls arrive beside them at a fixed rate, whether those before were answered or not.
Used and refused are read from the fake's bill and counters, over 120 s.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from bench.bulk import ENDED, JOBS, NDJSON
from bench.client import BenchError
from bench.machine import describe_machine
from bench.report import tell
from bench.stack import CONFIGURATION, MODEL, Stack
from bench.texts import text_of

REQUESTS_PER_MINUTE = 600
TOKENS_PER_MINUTE = 1_000_000
WORKER_PROCESSES = 4
UPSTREAM_S = 0.2
SYNC_PER_S = 4.0
SYNC_TEXTS = 10  # of 130 bytes: some 330 tokens
BULK_TEXT_NUMBERS = 25  # of 130 bytes each, joined: some 820 tokens
SETTLE_S = 10.0
SECONDS = 120.0
QUOTAS = f"requests_per_minute = {REQUESTS_PER_MINUTE}\ntokens_per_minute = {TOKENS_PER_MINUTE}"


class Sync:
    """Callers of the sync endpoint, at fixed instants."""

    def __init__(self, stack: Stack, per_s: float = SYNC_PER_S) -> None:
        self._stack = stack
        self._every_s = 1 / per_s
        self._pool = ThreadPoolExecutor(64)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.latencies_s: list[tuple[float, float]] = []  # when sent, and how long it took
        self.failed: list[str] = []

    def __enter__(self) -> Sync:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        number, due = 0, time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._pool.submit(self._call, number)
            number, due = number + 1, due + self._every_s

    def _call(self, number: int) -> None:
        texts = [text_of(10_000_000 + number * SYNC_TEXTS + i) for i in range(SYNC_TEXTS)]
        sent_at, began = time.time(), time.perf_counter()
        try:
            self._stack.api.json(
                "POST", "/v1/embeddings", {"model": MODEL, "input": texts, "encoding_format": "base64"}
            )
            self.latencies_s.append((sent_at, time.perf_counter() - began))
        except (BenchError, OSError) as error:
            self.failed.append(str(error)[:300])


def measure(postgres_url: str | None, seconds: float) -> dict[str, Any]:
    """Run it once."""
    configuration = CONFIGURATION.replace('base_url = "{url}"', f'base_url = "{{url}}"\n{QUOTAS}')
    limits = {"requests_per_minute": REQUESTS_PER_MINUTE, "tokens_per_minute": TOKENS_PER_MINUTE}
    with Stack(postgres_url, configuration=configuration, worker_processes=WORKER_PROCESSES) as stack:
        stack.fake.json("PUT", "/__script", [{"do": {"latency_ms": UPSTREAM_S * 1000}}])
        with Sync(stack) as alone:
            time.sleep(15.0)
        rules = [{"do": {"rate_limit": limits, "latency_ms": UPSTREAM_S * 1000}}]
        stack.fake.json("PUT", "/__script", rules)
        before = stack.fake.json("GET", "/__stats")
        job_id = submit(stack, int((SETTLE_S + seconds + 60) / 60 * TOKENS_PER_MINUTE / 700))
        with Sync(stack) as beside:
            time.sleep(SETTLE_S)
            metrics_before = stack.api.call("GET", "/metrics")[1].decode()
            started = time.time()
            time.sleep(seconds)
            stopped = time.time()
            job = stack.api.json("GET", f"{JOBS}/{job_id}")
            after = stack.fake.json("GET", "/__stats")
            metrics = stack.api.call("GET", "/metrics")[1].decode()
        if job["status"] in ENDED:
            raise BenchError(f"the job was too small: {job['status']}")
        lines = (orjson.loads(line) for line in (stack.folder / "bill.ndjson").read_bytes().splitlines())
        billed = [line for line in lines if started <= line["time"] < stopped]
        log = stack.log_of("worker")
    calls = after["calls"] - before["calls"]
    refused = after["faults"].get("429", 0) - before["faults"].get("429", 0)
    tokens = sum(line["tokens"] for line in billed)
    return {
        "seconds": stopped - started,
        "tokens_used": tokens,
        "token_quota_used": tokens / (TOKENS_PER_MINUTE * (stopped - started) / 60),
        "requests_used": len(billed) / (REQUESTS_PER_MINUTE * (stopped - started) / 60),
        "tokens_per_bulk_call": _median([line["tokens"] for line in billed if line["inputs"] != SYNC_TEXTS]),
        "calls": calls,
        "answered_429": refused,
        "answered_429_share": refused / calls,
        "sync_calls": len(beside.latencies_s),
        "sync_failed": len(beside.failed),
        "sync_alone_ms": percentiles([took_s for _, took_s in alone.latencies_s]),
        "sync_beside_ms": percentiles([took_s for sent_at, took_s in beside.latencies_s if sent_at >= started]),
        "sync_wait_in_line": _waits(metrics_before, metrics),
        "fallbacks": _value(metrics, "embedmill_limiter_local_fallback_total"),
        "job_waiting_on": job["waiting_on"],
        "worker_log": log[-2000:],
    }


def submit(stack: Stack, count: int) -> str:
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder:
        corpus = Path(folder) / "texts.ndjson"
        with corpus.open("wb") as file:
            for number in range(count):
                first = number * BULK_TEXT_NUMBERS
                text = " ".join(text_of(first + i) for i in range(BULK_TEXT_NUMBERS))
                file.write(orjson.dumps(text, option=orjson.OPT_APPEND_NEWLINE))
        job: dict[str, Any] = stack.api.upload(f"{JOBS}?model={MODEL.replace('/', '%2F')}", corpus, NDJSON)
    return str(job["id"])


def percentiles(seconds: list[float]) -> dict[str, float]:
    ranked = sorted(seconds)
    if not ranked:
        raise BenchError("no sync call was answered")
    return {f"p{p}": ranked[min(len(ranked) - 1, len(ranked) * p // 100)] * 1000 for p in (50, 90, 99, 100)}


def _median(numbers: list[int]) -> float:
    return float(sorted(numbers)[len(numbers) // 2]) if numbers else 0.0


def _waits(before: str, after: str) -> dict[str, float]:
    """Shares of the sync calls that waited no longer than so many seconds for leave to start, by the API's metrics."""
    pattern = r'^embedmill_limiter_wait_seconds_bucket{(?=[^}]*lane="interactive")[^}]*le="([^"]+)"[^}]*} (\S+)$'
    earlier = {bound: float(count) for bound, count in re.findall(pattern, before, re.M)}
    counts = {bound: float(count) - earlier.get(bound, 0) for bound, count in re.findall(pattern, after, re.M)}
    return {bound: count / max(counts["+Inf"], 1) for bound, count in counts.items()}


def _value(metrics: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.M))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pacing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--label", help="keep the figures in bench/results under this name")
    given = parser.parse_args()
    machine = describe_machine()
    try:
        figures = measure(os.environ.get("EMBEDMILL_TEST_POSTGRES_URL"), given.seconds)
    except BenchError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    marks = {
        "token quota used >= 95 %": figures["token_quota_used"] >= 0.95,
        "answered 429 <= 0.1 %": figures["answered_429_share"] <= 0.001,
        "sync p99 added wait <= 250 ms": figures["sync_wait_in_line"].get("0.25", 0) >= 0.99,
    }
    results = {"machine": machine, "figures": figures, "marks": marks}
    tell(results, given.label)
    return 0 if all(marks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
