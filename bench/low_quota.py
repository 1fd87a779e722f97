"""A provider whose real quota is half of the configured one: `python -m bench.low_quota`, with real processes.

The fake upstream allows 300 requests and 500,000 tokens in any 60 s, states no limits in its headers, and answers 429
with Retry-After beyond that; 600 and 1,000,000 are configured. Two worker processes run one big job from the start;
sync calls arrive beside them twice a second. All figures are from the first second of the job on: in the first minute
the quota is learned.

`--before FILE` puts the figures of another checkout beside these.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from bench.bulk import ENDED, JOBS
from bench.client import BenchError
from bench.machine import describe_machine
from bench.pacing import QUOTAS, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, UPSTREAM_S, Sync, percentiles, submit
from bench.report import tell
from bench.stack import CONFIGURATION, Stack

REAL_SHARE = 0.5
SYNC_PER_S = 2.0
WORKER_PROCESSES = 2
SECONDS = 180.0
LEARNED_AFTER_S = 70.0  # the first 429 came after 30 s, and shut the gate for 30 s or a little more


def measure(postgres_url: str | None, seconds: float) -> dict[str, Any]:
    """Run it once."""
    configuration = CONFIGURATION.replace('base_url = "{url}"', f'base_url = "{{url}}"\n{QUOTAS}')
    tokens_per_minute = int(TOKENS_PER_MINUTE * REAL_SHARE)
    limits = {
        "requests_per_minute": int(REQUESTS_PER_MINUTE * REAL_SHARE),
        "tokens_per_minute": tokens_per_minute,
        "states_limits": False,
    }
    with Stack(postgres_url, configuration=configuration, worker_processes=WORKER_PROCESSES) as stack:
        stack.fake.json("PUT", "/__script", [{"do": {"rate_limit": limits, "latency_ms": UPSTREAM_S * 1000}}])
        before = stack.fake.json("GET", "/__stats")
        job_id = submit(stack, int((seconds + 60) / 60 * TOKENS_PER_MINUTE / 700))
        started = time.time()
        with Sync(stack, SYNC_PER_S) as sync:
            time.sleep(seconds)
        stopped = time.time()
        job = stack.api.json("GET", f"{JOBS}/{job_id}")
        after = stack.fake.json("GET", "/__stats")
        if job["status"] in ENDED:
            raise BenchError(f"the job was too small: {job['status']}")
        lines = [orjson.loads(line) for line in (stack.folder / "bill.ndjson").read_bytes().splitlines()]
    learned = started + LEARNED_AFTER_S

    def used(since: float, until: float) -> float:
        tokens = sum(line["tokens"] for line in lines if since <= line["time"] < until)
        return float(tokens) / (tokens_per_minute * (until - since) / 60)

    late = [took_s for sent_at, took_s in sync.latencies_s if sent_at >= learned]
    return {
        "seconds": stopped - started,
        "upstream_calls": after["calls"] - before["calls"],
        "upstream_429": after["faults"].get("429", 0) - before["faults"].get("429", 0),
        "sync_answered": len(sync.latencies_s),
        "sync_ms": percentiles([took_s for _, took_s in sync.latencies_s]),
        "sync_ms_once_learned": percentiles(late),
        "sync_turned_away_with_429": sum("429" in text for text in sync.failed),
        "sync_failed_otherwise": [text for text in sync.failed if "429" not in text][:5],
        "real_token_quota_used": used(started, started + seconds),
        "real_token_quota_used_once_learned": used(learned, started + seconds),
        "job_waiting_on": job["waiting_on"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.low_quota", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--before", type=Path, help="what this script printed in another checkout, to be kept beside")
    parser.add_argument("--label", help="keep the figures in bench/results under this name")
    given = parser.parse_args()
    machine = describe_machine()
    try:
        figures = measure(os.environ.get("EMBEDMILL_TEST_POSTGRES_URL"), given.seconds)
    except BenchError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    results: dict[str, Any] = {"machine": machine, "figures": figures}
    if given.before:
        results["before"] = orjson.loads(given.before.read_bytes())
    tell(results, given.label)
    return 0


if __name__ == "__main__":
    sys.exit(main())
