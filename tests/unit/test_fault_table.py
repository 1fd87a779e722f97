"""The table of faults: what is wrong shows in it, old runs can still be read, and where tests differ is said."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from tests.fault_report import DIFFERS, NOT_DONE, ROWS
from tests.faults.table import HEAD, notes, table
from tests.system.oracle import Findings

GOOD = Findings(inputs=100)


def cells(*each_findings: dict[str, Any]) -> dict[str, str]:
    [line] = table([{"row": 3, "outcome": "passed", "verdict": each} for each in each_findings], [3])[len(HEAD) :]
    split = [[cell.strip() for cell in each.strip("|").split("|")] for each in (HEAD[0], line)]
    return dict(zip(*split, strict=True))


def test_books_that_do_not_balance_show() -> None:
    assert cells(asdict(GOOD))["ledger wrong"] == "0"
    row = cells(asdict(GOOD), asdict(replace(GOOD, unbalanced=2)), asdict(replace(GOOD, unbalanced=1)))
    assert (row["ledger wrong"], row["doubly charged"], row["inputs"]) == ("3", "0", "300")
    assert not replace(GOOD, unbalanced=1).is_clean and GOOD.is_clean


def test_runs_of_before_the_count_can_be_read() -> None:
    old = asdict(GOOD)
    del old["unbalanced"]
    assert (cells(old)["ledger wrong"], cells(old)["lost"]) == ("", "0")
    assert cells(old, asdict(replace(GOOD, unbalanced=1)))["ledger wrong"] == "1"


def test_a_row_that_was_not_run_has_as_many_cells() -> None:
    [line] = table([], [20])[len(HEAD) :]
    assert line.count("|") == HEAD[0].count("|") and NOT_DONE[20] in line


def test_where_tests_differ_is_told_for_the_rows_of_the_table() -> None:
    assert DIFFERS.keys() <= ROWS.keys()
    assert notes([3]) == []
    assert notes([3, 6])[-1] == f"- Row 6: {DIFFERS[6]}"
