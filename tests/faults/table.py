"""Writes the numbers of `make faults` or `make chaos` into a table of docs/reliability.md, between its markers.

python -m tests.faults.table bench/results/faults.json docs/reliability.md
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.fault_report import DIFFERS, NOT_DONE, ROWS

BEGIN, END = "<!-- {name}: written by tests/faults/table.py -->", "<!-- end of {name} -->"
COUNTS = ("lost", "duplicated", "misaligned", "duplicate_ledger", "unbalanced")
HEAD = (
    "| row | fault | runs | inputs | lost | duplicated | misaligned | doubly charged | ledger wrong | "
    "upstream overhead | worst recovery | seeds |",
    "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
)


def table(runs: list[dict[str, Any]], rows: list[int]) -> list[str]:
    """A line for each row of the matrix: sums over its runs, and the worst recovery of any."""
    by_row: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_row[run["row"]].append(run)
    lines = [*HEAD]
    for row in rows:
        mine = by_row[row]
        if not mine:
            reason = NOT_DONE.get(row, "not in this run")
            lines.append(f"| {row} | {ROWS[row]} | – | | | | | | | | | {reason} |")
            continue
        judged = [run["verdict"] for run in mine if "verdict" in run]
        inputs = sum(findings["inputs"] for findings in judged)
        counts = [_sum([findings.get(name) for findings in judged]) for name in COUNTS]
        repeated = sum(findings["repeated"] for findings in judged)
        overhead = f"{repeated / inputs:.2%}" if inputs else ""
        times = [run["recovery_s"] for run in mine if "recovery_s" in run]
        recovery = f"{max(times):.1f} s" if times else ""
        seeds = ", ".join(sorted({f"{run['seed']}" for run in mine if "seed" in run}))
        failed = sum(run["outcome"] in ("failed", "error") for run in mine)
        count = f"{len(mine)}" + (f" ({failed} failed)" if failed else "")
        cells = [f"{row}", ROWS[row], count, f"{inputs:,}" if inputs else "", *counts, overhead, recovery, seeds]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _sum(counts: list[int | None]) -> str:
    """Runs from before a count was made have none of it: a 0 that nobody has counted is not written."""
    known = [count for count in counts if count is not None]
    return f"{sum(known)}" if known else ""


def notes(rows: list[int]) -> list[str]:
    """Where the tests of these rows ask for something else than the matrix does."""
    told = [f"- Row {row}: {DIFFERS[row]}" for row in rows if row in DIFFERS]
    return ["", "Where a test differs from the fault matrix on purpose:", "", *told] if told else []


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    runs = json.loads(source.read_text())
    name = source.stem
    rows = [54] if name == "chaos" else [row for row in ROWS if row != 54]
    begin, end = BEGIN.format(name=name), END.format(name=name)
    page = target.read_text("utf-8")
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{target} has no place for {name}: {begin} … {end}")
    target.write_text("\n".join([before + begin, "", *table(runs, rows), *notes(rows), "", end + after]), "utf-8")


if __name__ == "__main__":
    main()
