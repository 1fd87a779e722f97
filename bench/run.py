"""`make bench`: starts the real processes, measures them, prints the page and keeps it in bench/results.

PostgreSQL is measured where EMBEDMILL_TEST_POSTGRES_URL names a server on which databases may be made.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from bench.bulk import measure_bulk, run_job
from bench.client import BenchError
from bench.ingest import measure_ingest
from bench.machine import describe_machine
from bench.reading import measure_downloads, measure_polls
from bench.report import page, store
from bench.stack import Stack
from bench.sync import measure_sync

SCENARIOS = ("sync", "bulk", "polls", "downloads", "ingest")
POSTGRES = "EMBEDMILL_TEST_POSTGRES_URL"


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the scenarios that were asked for."""
    wanted = set(given.only)
    seconds, repetitions = (1.0, 1) if given.quick else (5.0, 3)
    bulk_repetitions = 1 if given.quick else given.bulk_repetitions
    results: dict[str, Any] = {"machine": describe_machine()}
    if "sync" in wanted:
        _say("sync")
        with Stack() as stack:
            results["sync"] = measure_sync(stack, seconds=seconds, repetitions=repetitions)
    for database in given.database if wanted - {"sync"} else ():
        with Stack(os.environ[POSTGRES] if database == "postgres" else None) as stack:
            _say(f"bulk and jobs, {stack.database}")
            job_id = ""
            if "bulk" in wanted:
                bulk, job_id = measure_bulk(stack, count=given.n, repetitions=bulk_repetitions)
                results.setdefault("bulk", []).append(bulk)
            elif wanted & {"polls", "downloads"}:
                job_id = run_job(stack, given.n)
            if "polls" in wanted:
                rows = measure_polls(stack, job_id, seconds=seconds, repetitions=repetitions)
                results.setdefault("polls", {})[stack.database] = rows
            if "downloads" in wanted:
                rows = measure_downloads(stack, job_id, count=given.n, repetitions=repetitions)
                results.setdefault("downloads", {})[stack.database] = rows
            if "ingest" in wanted:
                rows = measure_ingest(stack, count=given.n, repetitions=repetitions)
                results.setdefault("ingest", {})[stack.database] = rows
    return results


def main() -> int:
    given = _arguments()
    started = time.monotonic()
    try:
        results = measure(given)
    except BenchError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    print(page(results))
    if not given.quick or given.label:
        print(f"kept in {store(results, given.label or results['machine']['date'][:10])}")
    _say(f"{time.monotonic() - started:.0f} s in all")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run of each, 20,000 texts, nothing kept")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SCENARIOS), help=",".join(SCENARIOS))
    parser.add_argument(
        "--database", action="append", choices=("sqlite", "postgres"), help="default: each that there is"
    )
    parser.add_argument("--n", type=int, help="texts of a bulk job; default 100,000")
    parser.add_argument("--bulk-repetitions", type=int, default=3)
    parser.add_argument("--label", help="name of the files in bench/results; default: today's date")
    given = parser.parse_args()
    unknown = set(given.only) - set(SCENARIOS)
    if unknown:
        parser.error(f"there is no scenario {min(unknown)!r}; there are {', '.join(SCENARIOS)}")
    given.n = given.n or (20_000 if given.quick else 100_000)
    given.database = given.database or ["sqlite", *(["postgres"] if os.environ.get(POSTGRES) else [])]
    if "postgres" in given.database and not os.environ.get(POSTGRES):
        parser.error(f"--database postgres needs {POSTGRES}=postgresql://…")
    return given


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
