"""`make providers`: runs the tests of the adapters, and prints what they found: a table of provider × ability.

A test is of a column by its mark, `@pytest.mark.provider_column("usage", …)`, and of a kind by its parameter `kind` or
`dialect`, or by `kind=` of the mark. It may say what it has observed with `record_property(OBSERVED + column, …)`, of
another column too. Nothing else is in the table: a cell is a dash where no test applies, and says so where a test has
failed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from providers import PROVIDERS

COLUMNS = ("sync", "dimensions", "input_type", "base64", "token arrays", "truncate", "usage", "errors", "limits")
OBSERVED = "observed: "
Observe = Callable[[str, object], None]  # what pytest's `record_property` is
MARK = "provider_column"
NO_TEST = "-"


@dataclass(slots=True)
class Cell:
    """What the tests of one kind and one column came to."""

    passed: int = 0
    failed: int = 0
    observations: list[str] = field(default_factory=list)  # in the order of the tests, each once

    def add(self, outcome: str, observation: str | None) -> None:
        """Count one test. A skipped one counts as neither."""
        self.passed += outcome == "passed"
        self.failed += outcome == "failed"
        if outcome == "passed" and observation is not None and observation not in self.observations:
            self.observations.append(observation)

    def __str__(self) -> str:
        if self.failed:
            return f"FAILED {self.failed} of {self.passed + self.failed}"
        if not self.passed:
            return NO_TEST
        return ", ".join(self.observations) or f"{self.passed} passed"


class Matrix:
    """A pytest plugin that fills the cells from the reports of the run."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], Cell] = defaultdict(Cell)
        self._places: dict[str, tuple[str, Sequence[str]]] = {}  # kind and columns of each test

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note of what kind and of which columns each test is."""
        for item in items:
            marks = [*item.iter_markers(MARK)]
            columns = [column for mark in marks for column in mark.args]
            unknown = set(columns) - set(COLUMNS)
            assert not unknown, f"{item.nodeid} is of columns that there are not: {unknown}"
            kinds = [mark.kwargs["kind"] for mark in marks if "kind" in mark.kwargs]
            kind = kinds[0] if kinds else kind_of(getattr(item, "callspec", None))
            if columns:
                assert kind in PROVIDERS, f"{item.nodeid} has a column, and is of no kind"
                self._places[item.nodeid] = (kind, columns)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the result of a test's body, and a failure before or after it."""
        place = self._places.get(report.nodeid)
        if place is None or (report.when != "call" and report.outcome != "failed"):
            return
        kind, columns = place
        observations = {
            name.removeprefix(OBSERVED): str(value)
            for name, value in report.user_properties
            if name.startswith(OBSERVED)
        }
        for column in dict.fromkeys([*columns, *observations]):
            self.cells[kind, column].add(report.outcome, observations.get(column))

    def lines(self, kinds: Iterable[str]) -> list[str]:
        """The table as Markdown."""
        rows = [["provider", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
        rows += [[kind, *(str(self.cells.get((kind, column), NO_TEST)) for column in COLUMNS)] for kind in kinds]
        return [f"| {' | '.join(row)} |" for row in rows]

    def without_a_pass(self, kinds: Iterable[str]) -> list[str]:
        """The kinds that no test has shown to embed."""
        return [kind for kind in kinds if not self.cells[kind, "sync"].passed]


def kind_of(callspec: Any) -> str | None:
    """The kind that a test is about, by its parameters."""
    parameters: Mapping[str, Any] = {} if callspec is None else callspec.params
    if (dialect := parameters.get("dialect")) is not None:
        return str(dialect.kind)
    kind = parameters.get("kind")
    return kind if isinstance(kind, str) else None


def main() -> int:
    """Run the tests, print the table. 1 where a test has failed, or a kind has none."""
    matrix = Matrix()
    status = pytest.main([str(Path(__file__).parent), "-m", MARK, "-q", "--no-header"], plugins=[matrix])
    kinds = [kind for kind, provider in PROVIDERS.items() if provider.traits.can_embed]
    print("\n".join(matrix.lines(kinds)))
    print("\nFrom the results of this run: replies are recorded forms, and those of the fakes; limits are the fakes'.")
    missing = matrix.without_a_pass(kinds)
    if missing:
        print(f"no test has shown that these embed: {', '.join(missing)}", file=sys.stderr)
    return 1 if status or missing else 0


if __name__ == "__main__":
    sys.exit(main())
