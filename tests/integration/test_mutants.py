"""The runner of mutants: a fault that no test notices, or that was never applied, must not pass for a killed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutant_list import MUTANTS, Mutant
from tests.mutants import ROOT, main, misplaced, run_mutants

SOURCE = "LIMIT = 3\n\n\ndef allows(count: int) -> bool:\n    return count <= LIMIT\n"
TESTS = """from package.code import allows


def test_small():
    assert allows(1)


def test_exact():
    assert allows(3) and not allows(4)
"""
NOTICED = Mutant("noticed", "package/code.py", "LIMIT = 3", "LIMIT = 4", ("test_code.py",))
# The same size as the original and written within the same second: a compiled module must not hide it.
UNNOTICED = Mutant("unnoticed", "package/code.py", "LIMIT = 3", "LIMIT = 4", ("test_code.py::test_small",))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "package").mkdir(parents=True)
    (root / "package" / "__init__.py").touch()
    (root / "package" / "code.py").write_text(SOURCE)
    (root / "test_code.py").write_text(TESTS)
    return root


def test_a_mutant_that_a_test_notices_is_killed_by_that_test(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_mutants(project, [NOTICED]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("noticed: killed by test_code.py::test_exact (") and lines[2] == "1 of 1 mutants killed"
    assert (project / "package" / "code.py").read_text() == SOURCE and not list(project.rglob("*.pyc"))


def test_a_mutant_that_no_test_notices_survives(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_mutants(project, [UNNOTICED, NOTICED, UNNOTICED]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("unnoticed: SURVIVED: test_code.py::test_small passed")
    assert lines[2].startswith("noticed: killed") and lines[4] == "1 of 3 mutants killed"


def test_one_survivor_is_exit_status_1(project: Path) -> None:
    assert [main([], root=project, mutants=mutants) for mutants in ([NOTICED], [UNNOTICED])] == [0, 1]
    assert main(["noticed"], root=project, mutants=[NOTICED, UNNOTICED]) == 0
    with pytest.raises(SystemExit, match="no mutant is named other"):
        main(["other"], root=project, mutants=[NOTICED])


@pytest.mark.parametrize("replacement", ["LIMIT = (", "import nothing_of_this_name"])
def test_a_mutant_with_which_the_tests_cannot_be_run_is_not_killed(
    project: Path, capsys: pytest.CaptureFixture[str], replacement: str
) -> None:
    broken = Mutant("broken", "package/code.py", "LIMIT = 3", replacement, ("test_code.py",))
    assert run_mutants(project, [broken]) == 1
    assert "broken: SURVIVED: the tests could not be run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("package/code.py", "LIMIT = 5", "contains the text 0 times, not once: 'LIMIT = 5'"),
        ("package/code.py", "LIMIT", "contains the text 2 times, not once"),
        ("package/gone.py", "LIMIT = 3", "there is no file package/gone.py"),
    ],
)
def test_a_mutant_that_no_longer_fits_the_code_is_a_failure(
    project: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, problem: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        run_mutants(project, [NOTICED, Mutant("old", file, text, "", ("test_code.py",))])
    assert f"old: {file}" in str(raised.value) or f"old: {problem}" in str(raised.value)
    assert problem in str(raised.value) and "noticed" not in str(raised.value)
    assert capsys.readouterr().out == ""


def test_tests_that_fail_without_a_mutant_prove_nothing(project: Path) -> None:
    (project / "test_code.py").write_text(TESTS.replace("allows(1)", "allows(9)"))
    with pytest.raises(SystemExit, match="the tests fail without a mutant"):
        run_mutants(project, [NOTICED])


def test_every_mutant_of_the_list_fits_the_code_under_a_name_of_its_own() -> None:
    assert [problem for mutant in MUTANTS if (problem := misplaced(ROOT, mutant))] == []
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
    assert all(mutant.tests and mutant.text != mutant.replacement for mutant in MUTANTS)
