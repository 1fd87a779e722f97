"""The table of `make providers`: cells are made of test results, and of nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.contract.dialects import DIALECTS
from tests.contract.provider_matrix import COLUMNS, OBSERVED, Cell, Matrix, kind_of

FAKE_TEST = f'''
import pytest

@pytest.mark.provider_column("sync", "usage")
@pytest.mark.parametrize("kind", ["openai", "cohere"])
def test_of_two_kinds(kind, record_property):
    record_property("{OBSERVED}usage", "tokens")
    assert kind == "openai"

@pytest.mark.provider_column("truncate", kind="watsonx")
def test_of_one_kind():
    pass
'''


@pytest.mark.parametrize(
    ("outcomes", "shown"),
    [
        ([], "-"),
        ([("skipped", None)], "-"),
        ([("passed", None)] * 2, "2 passed"),
        ([("passed", "a"), ("passed", "b"), ("passed", "a")], "a, b"),
        ([("passed", "a"), ("failed", "b")], "FAILED 1 of 2"),
    ],
)
def test_a_cell(outcomes: list[tuple[str, str | None]], shown: str) -> None:
    cell = Cell()
    for outcome, observation in outcomes:
        cell.add(outcome, observation)
    assert str(cell) == shown


def test_the_table_is_of_the_tests_that_ran(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tests")
    (folder / "test_kinds.py").write_text(FAKE_TEST)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers = provider_column\nasyncio_default_fixture_loop_scope = function\n"
    )
    matrix = Matrix()
    options = ["--rootdir", str(folder), "-c", str(folder / "pytest.ini"), "-p", "no:cacheprovider", "-q"]
    assert pytest.main([str(folder), *options], plugins=[matrix]) == 1
    rows = [line.strip("| ").split(" | ") for line in matrix.lines(["openai", "cohere", "watsonx"])[2:]]
    shown = [dict(zip(("kind", *COLUMNS), row, strict=True)) for row in rows]
    assert [row["sync"] for row in shown] == ["1 passed", "FAILED 1 of 1", "-"]
    assert [row["usage"] for row in shown] == ["tokens", "FAILED 1 of 1", "-"]
    assert [row["truncate"] for row in shown] == ["-", "-", "1 passed"]
    assert matrix.without_a_pass(["openai", "cohere", "watsonx"]) == ["cohere", "watsonx"]


def test_the_kind_of_a_test() -> None:
    callspec = SimpleNamespace(params={"dialect": DIALECTS[0], "kind": "cohere"})
    assert kind_of(callspec) == DIALECTS[0].kind and kind_of(None) is None
