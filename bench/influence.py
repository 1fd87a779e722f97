"""`python -m bench.influence`: how long one tenant's calls take while another does its worst, beside a calm time.

Each hostile act of tests/influence runs for some seconds beside four callers of another tenant; before each, the same
callers are measured alone. For each act the ratio of the two p99s is told, and what explains it: how late the event
loop of the API ran, how much processor time the API used, and how long its threads waited for a processor.

The API has a processor to itself, as in bench.sync, and the attacker yields to all others: its own work, which it would
do on a machine of its own, is not what is measured. Nor is the work of a provider: acts that fill it go to another one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from bench.machine import describe_machine
from bench.report import RESULTS
from tests.influence.acts import ACTS
from tests.influence.attacker import Attacker
from tests.influence.field import Field
from tests.influence.victim import Calls, Victim
from tests.system.stack import OTHER_MODEL, Stack

CALLERS = 4
PAUSE_S = 0.01
UPSTREAM_MS = 50.0
GOAL = 2.0
SETTLE_S = 0.5
ATTACKER_NICE = 19
# The fake upstream has one processor for all: a call of thousands of inputs, or many calls broken off, take it up.
FULL = ("full calls", "full calls as base64", "absurd token ids", "callers who hang up")
CORES = sorted(os.sched_getaffinity(0))
DELAY = re.compile(r'^embedmill_event_loop_delay_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


class Api:
    """What the API process itself says of its event loop, and the kernel of its threads."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._pid = stack.processes.pid("api")

    def read(self) -> tuple[float, float, dict[float, float]]:
        """Seconds on a processor, seconds of waiting for one, and how many delays were at most so long.

        The seconds are of threads that live: where one ends between two readings, their difference is too small.
        """
        run_s = wait_s = 0.0
        for thread in Path(f"/proc/{self._pid}/task").iterdir():
            on, waited, _ = map(int, (thread / "schedstat").read_text().split())
            run_s += on / 1e9
            wait_s += waited / 1e9
        found = DELAY.findall(self._stack.api.get("/metrics").text)
        return run_s, wait_s, {float(bound): float(count) for bound, count in found}


def keep_apart(stack: Stack, attacker: Attacker) -> None:
    """The API to the first processor, where there are several; the attacker behind all others."""
    for pid in (attacker.pid, stack.processes.pid("other-fake")):
        os.setpriority(os.PRIO_PROCESS, pid, ATTACKER_NICE)
    if len(CORES) > 1:
        for thread in Path(f"/proc/{stack.processes.pid('api')}/task").iterdir():
            os.sched_setaffinity(int(thread.name), CORES[:1])


def measure(field: Field, attacker: Attacker, name: str, seconds: float) -> dict[str, Any]:
    victim, api = Victim(field.stack, callers=CALLERS, pause_s=PAUSE_S), Api(field.stack)
    field.clear()
    time.sleep(SETTLE_S)
    calm = _stream(victim, f"calm before {name}", seconds)
    before = api.read()
    attacker.begin(name, seconds, model=OTHER_MODEL if name in FULL else None)
    attacked = _stream(victim, f"beside {name}", seconds)
    after = api.read()
    statuses = attacker.end()
    delays = {bound: after[2][bound] - before[2][bound] for bound in after[2]}
    return {
        "act": name,
        "calls": len(attacked.texts),
        "wrong": len(calm.wrong) + len(attacked.wrong),
        "calm_p50_ms": round(calm.percentile_ms(50), 1),
        "calm_p99_ms": round(calm.percentile_ms(99), 1),
        "p50_ms": round(attacked.percentile_ms(50), 1),
        "p99_ms": round(attacked.percentile_ms(99), 1),
        "p99_ratio": round(attacked.percentile_ms(99) / calm.percentile_ms(99), 2),
        "calm_own_p99_ms": round(calm.own_percentile_ms(99), 1),
        "own_p99_ms": round(attacked.own_percentile_ms(99), 1),
        "loop_delay_p99_ms_at_most": _delay_p99_s(delays) * 1000,
        "api_cpu": round((after[0] - before[0]) / seconds, 2),
        "api_waits_for_cpu": round((after[1] - before[1]) / seconds, 2),
        "attackers_answers": {str(status): count for status, count in sorted(statuses.items())},
    }


def _stream(victim: Victim, user: str, seconds: float) -> Calls:
    ends_at = time.monotonic() + seconds
    return victim.stream(user, lambda: time.monotonic() >= ends_at)


def _delay_p99_s(delays: dict[float, float]) -> float:
    """The upper end of the bucket that the 99th of 100 delays is in."""
    total = max(delays.values(), default=0.0)
    return min((bound for bound, count in delays.items() if count >= 0.99 * total), default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.influence", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--act", action="append", choices=sorted(ACTS), help="default: all")
    given = parser.parse_args()
    machine = describe_machine()
    rows = []
    os.sched_setaffinity(0, CORES[1:] or CORES)  # what is started from here on inherits it
    with (
        tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder,
        Stack(Path(folder), has_other_upstream=True) as stack,
    ):
        field = Field(stack, latency_ms=UPSTREAM_MS)
        with Attacker(field.target) as attacker:
            keep_apart(stack, attacker)
            for name in given.act or ACTS:
                row = measure(field, attacker, name, given.seconds)
                rows.append(row)
                print(orjson.dumps(row).decode(), flush=True)
        field.close()
    over = [row["act"] for row in rows if row["p99_ratio"] > GOAL]
    print(f"{len(rows) - len(over)} of {len(rows)} acts within {GOAL:g} times the calm p99; over it: {over}")
    if not given.act:
        told = {"machine": machine, "upstream_ms": UPSTREAM_MS, "callers": CALLERS, "rows": rows}
        (RESULTS / "influence.json").write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
