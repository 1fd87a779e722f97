"""The table of the fault matrix: which rows there are, which test breaks what, and what came of it.

Tests are marked `@pytest.mark.fault(row)`, wherever they live. With EMBEDMILL_TEST_FAULTS=<file> the numbers are
written there, for tests/faults/table.py.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

ROWS = {
    1: "worker killed in the middle of its calls",
    2: "worker child killed, again and again",
    3: "killed between the provider's answer and the commit",
    4: "killed between commit and acknowledgement",
    5: "worker frozen past its lease, then woken",
    6: "message lost on its way to a worker",
    7: "every message delivered ten times",
    8: "messages about work that is over",
    9: "broker killed and restarted",
    10: "broker empty (FLUSHALL)",
    11: "broker down for long",
    12: "broker frozen",
    13: "broker out of memory",
    14: "worker alive but deaf",
    15: "PostgreSQL restarted under load",
    16: "PostgreSQL down while paid answers arrive",
    17: "connection cut at COMMIT",
    18: "PostgreSQL slow, tables locked",
    19: "no database connection to be had",
    20: "PostgreSQL's disk full",
    21: "SQLite busy; its disk full",
    22: "spool's disk full",
    23: "torn spool file",
    24: "429 in all forms",
    25: "30 % random 500, 502, 503, 529",
    26: "permanent 500",
    27: "401, 403",
    28: "one poison input",
    29: "the provider never answers",
    30: "the answer drips",
    31: "the answer is cut, reset, truncated",
    32: "too few, too many, doubled, shuffled vectors",
    33: "wrong width, NaN, infinite, zero vectors",
    34: "no JSON, HTML, nothing",
    35: "huge answer, gzip bomb",
    36: "redirects, interim floods, desync",
    37: "floats for base64, wrong lengths",
    38: "client hangs up",
    39: "client repeats a job's creation",
    40: "API killed around the accept",
    41: "rolling deploy under load",
    42: "old code on the new schema",
    43: "clocks ten minutes off",
    44: "cancel in every state",
    45: "delete while running",
    46: "webhook receiver down",
    47: "killed after a webhook",
    48: "two schedulers",
    49: "a small job beside a huge one",
    50: "memory over a long job",
    51: "file descriptors used up",
    52: "poison text",
    53: "garbage in the broker",
    54: "everything at random",
    55: "API killed around each step of an upload, and the sweep within its purge",
    56: "workers killed while they validate, read and write the files of jobs and batches",
}
NOT_DONE = {
    20: "SQLite's full disk stands for it (row 21): both meet the same code; a full PostgreSQL disk is its operator's",
    42: "nothing older than this schema has been released, so there is no old code to run on it",
}
SHORTER = "shorter than in the matrix unless EMBEDMILL_TEST_LONG=1 is set"
# Where what a test asks for is, on purpose, not what the matrix asks for: one sentence for each such row.
DIFFERS = {
    1: f"Three kills instead of twenty, {SHORTER}; upstream latency and leases are scaled down together, "
    "and a lease of 60 s is tried once, with a machine that is lost.",
    6: "Sweeps are seconds apart here, so the mark is some seconds and not 35 s.",
    11: f"Eight seconds instead of five minutes: {SHORTER}.",
    12: f"No longer than one job and one call need, instead of 60 s: {SHORTER}; one job's and one call's time is "
    "bounded, and no p99 taken.",
    15: f"Three restarts instead of ten: {SHORTER}.",
    16: f"As long as it takes until paid answers wait in the spool, instead of two minutes: {SHORTER}.",
    18: f"Tables are locked for 6 s instead of 30 s: {SHORTER}; the proxy's latency of 0.1 s is to leases of 4 s "
    "about what 2 s are to those of 60 s.",
    29: "A slot is free again within the call's time and 5 s, not 1 s: what is measured is the end of the whole job.",
    46: f"The receiver is down for some seconds instead of an hour: {SHORTER}; the schedule's later delays are "
    "checked by its attempts, with the clock of the deliveries set back.",
    49: "40,000 inputs stand for the million, which bench/beside.py has.",
    50: "100,000 inputs in place of the million, which bench/scale.py has; the slope is asked of each process.",
}


def note_rows(items: list[pytest.Item]) -> None:
    """Let each report say which rows its test is about."""
    for item in items:
        rows = [row for mark in item.iter_markers("fault") for row in mark.args]
        if rows:
            item.user_properties.append(("fault_rows", sorted(rows)))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    by_row: dict[int, list[tuple[str, str, dict[str, Any]]]] = defaultdict(list)
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, ()):
            noted = dict(getattr(report, "user_properties", ()))
            for row in noted.get("fault_rows", ()):
                by_row[row].append((report.nodeid.partition("@")[0], outcome, noted))
    if "fault" not in str(config.option.markexpr or "") or not by_row:
        return
    terminalreporter.section("faults: row, test, result")
    for row, what in ROWS.items():
        for test, outcome, noted in by_row.get(row, ()):
            recovery_s = noted.get("recovery_s")
            took = f"  recovered in {recovery_s:.1f} s" if isinstance(recovery_s, float) else ""
            terminalreporter.line(f"{row:3} {what}: {outcome}{took}  {test}")
        if row not in by_row:
            terminalreporter.line(f"{row:3} {what}: not run{': ' + NOT_DONE[row] if row in NOT_DONE else ''}")
    if target := os.environ.get("EMBEDMILL_TEST_FAULTS"):
        runs = [
            {"row": row, "test": test, "outcome": outcome, **{k: v for k, v in noted.items() if k != "fault_rows"}}
            for row in sorted(by_row)
            for test, outcome, noted in by_row[row]
        ]
        Path(target).write_text(json.dumps(runs, indent=1) + "\n")
