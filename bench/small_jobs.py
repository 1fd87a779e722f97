"""`python -m bench.small_jobs`: thousands of small jobs: does accepting and finishing them slow down on the way?"""

from __future__ import annotations

import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.bulk import JOBS
from bench.client import BenchError
from bench.costs import ask
from bench.measure import CpuMeter
from bench.one_run import one_run
from bench.stack import MODEL, Stack
from bench.texts import text_of

CALLERS = 4


def measure(stack: Stack, count: int) -> dict[str, Any]:
    """Submit `count` jobs of 3 to 10 inputs as fast as they are taken, then wait until all are through."""
    meter, started = CpuMeter(stack.trees()), time.perf_counter()

    def submit(number: int) -> float:
        inputs = [text_of(number * 10 + place) for place in range(3 + number % 8)]
        asked = time.perf_counter()
        stack.api.json("POST", JOBS, {"model": MODEL, "input": inputs}, expect=202)
        return time.perf_counter() - asked

    with ThreadPoolExecutor(CALLERS) as callers:
        took = np.array(list(callers.map(submit, range(count)))) * 1000
    accepted_s = time.perf_counter() - started
    at_acceptance = _finished(stack)
    marks = [_mark(stack, meter)]
    while marks[-1][1] < count:
        time.sleep(1.0)
        marks.append(_mark(stack, meter))
        if marks[-1][0] - started > 3600:
            raise BenchError(f"{marks[-1][1]} of {count} jobs after an hour")
    finished_s = time.perf_counter() - started
    bad = ask(stack.database_url, "select count(*) from jobs where status <> 'completed'")
    if bad:
        raise BenchError(f"{bad} jobs did not complete")
    fifth = count // 5
    rest = count - at_acceptance
    return {
        "database": stack.database,
        "jobs": count,
        "accepted_s": accepted_s,
        "finished_s": finished_s,
        "accept_ms_first_fifth": float(np.median(took[:fifth])),
        "accept_ms_last_fifth": float(np.median(took[-fifth:])),
        "accept_ms_p99": float(np.percentile(took, 99)),
        "waiting_when_all_were_accepted": rest,
        "of_these_by_quarters": _by_quarters(marks),
        "cpu_ms_per_job": {name: spent / count * 1000 for name, spent in meter.spent_s().items()},
    }


Mark = tuple[float, int, float]


def _mark(stack: Stack, meter: CpuMeter) -> Mark:
    """Now, jobs that have finished, and CPU seconds of all processes but the fake's."""
    spent = meter.spent_s()
    return time.perf_counter(), _finished(stack), sum(spent.values()) - spent["fake"]


def _by_quarters(marks: list[Mark]) -> list[dict[str, float]]:
    """Speed and cost of each quarter of the time: what a growing cost would show in."""
    first, last = marks[0][1], marks[-1][1]
    cuts = [next(mark for mark in marks if mark[1] >= first + (last - first) * part / 4) for part in range(5)]
    return [
        {
            "jobs_per_s": (later[1] - mark[1]) / (later[0] - mark[0]),
            "cpu_ms_per_job": (later[2] - mark[2]) / (later[1] - mark[1]) * 1000,
        }
        for mark, later in itertools.pairwise(cuts)
    ]


def _finished(stack: Stack) -> int:
    return int(ask(stack.database_url, "select count(*) from jobs where finished_at is not null"))


if __name__ == "__main__":
    sys.exit(one_run("small_jobs", __doc__, measure, n=10_000))
