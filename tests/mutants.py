"""Applies small faults to the code, one at a time, and expects the tests to fail: `python -m tests.mutants [NAME…]`.

The faults are in tests/mutant_list.py. The checkout is never edited: each mutant is applied to a copy of it, where the
tests that must notice it run. Before that all of them run on an unchanged copy, where they must pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 2
TIMEOUT_S = 120
TESTS_FAILED = 1  # pytest's exit status; a higher one means that the tests could not be run
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--color=no")
# `-x` stops at the first of these lines of the summary.
FAILED = re.compile(r"^FAILED (.+?)(?: - .*)?$", re.MULTILINE)
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "node_modules")


@dataclass(frozen=True, slots=True)
class MutantResult:
    """What came of one mutant. `killed_by`: the test that failed; None: no test noticed it, for the reason given."""

    mutant: Mutant
    killed_by: str | None
    seconds: float
    reason: str = ""

    def __str__(self) -> str:
        verdict = f"killed by {self.killed_by}" if self.killed_by else f"SURVIVED: {self.reason}"
        return f"{self.mutant.name}: {verdict} ({self.seconds:.1f} s)"


def misplaced(root: Path, mutant: Mutant) -> str:
    """Why the mutant cannot be applied, or ''."""
    path = root / mutant.file
    if not path.is_file():
        return f"there is no file {mutant.file}"
    count = path.read_text("utf-8").count(mutant.text)
    return "" if count == 1 else f"{mutant.file} contains the text {count} times, not once: {mutant.text!r}"


def run_mutants(root: Path, mutants: Sequence[Mutant]) -> int:
    """Run the tests of each mutant and print a line for each. Returns the number of mutants that no test killed.

    Raises SystemExit when a mutant cannot be applied, or the tests fail without any.
    """
    problems = [f"{mutant.name}: {problem}" for mutant in mutants if (problem := misplaced(root, mutant))]
    if problems:
        raise SystemExit("\n".join(["error: mutants that no longer fit the code:", *problems]))
    with tempfile.TemporaryDirectory(prefix="embedmill-mutants-") as folder:
        unchanged = Path(folder) / "unchanged"
        shutil.copytree(root, unchanged, ignore=NOT_COPIED)
        began = time.monotonic()
        # The compiled modules that this run leaves are copied too, so the mutants start faster.
        tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        completed = run_tests(unchanged, tests)
        if completed.returncode:
            raise SystemExit(f"error: the tests fail without a mutant\n{completed.stdout}{completed.stderr}")
        print(f"unchanged: the tests pass ({time.monotonic() - began:.1f} s)", flush=True)
        survivors = 0
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for result in threads.map(lambda mutant: run_mutant(unchanged, mutant), mutants):
                print(result, flush=True)
                survivors += result.killed_by is None
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed", flush=True)
    return survivors


def run_mutant(unchanged: Path, mutant: Mutant) -> MutantResult:
    """Run the mutant's tests on a copy of the folder with the mutant applied."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-", dir=unchanged.parent) as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(unchanged, copy)
        path = copy / mutant.file
        path.write_text(path.read_text("utf-8").replace(mutant.text, mutant.replacement), "utf-8")
        # Of the same size and second as the old source, the new one would be taken for compiled already.
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()
        try:
            completed = run_tests(copy, mutant.tests)
        except subprocess.TimeoutExpired:
            return MutantResult(mutant, None, time.monotonic() - began, f"the tests did not end in {TIMEOUT_S} s")
    seconds = time.monotonic() - began
    if completed.returncode == 0:
        return MutantResult(mutant, None, seconds, f"{' '.join(mutant.tests)} passed")
    failure = FAILED.search(completed.stdout)
    if completed.returncode != TESTS_FAILED or failure is None:
        return MutantResult(mutant, None, seconds, f"the tests could not be run\n{completed.stdout}{completed.stderr}")
    return MutantResult(mutant, failure[1], seconds)


def run_tests(folder: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run these tests in the folder, whose packages come before those of any installation."""
    return subprocess.run(
        [sys.executable, *PYTEST, *tests],
        cwd=folder,
        env=environment(os.environ) | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings that change what the tests do."""
    dropped = ("EMBEDMILL_", "PYTEST_", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    return {name: value for name, value in inherited.items() if not name.startswith(dropped)}


def main(names: Sequence[str], *, root: Path = ROOT, mutants: Sequence[Mutant] = MUTANTS) -> int:
    """Run the named mutants, or all. Returns the exit status: 1 when one survives."""
    by_name = {mutant.name: mutant for mutant in mutants}
    if unknown := [name for name in names if name not in by_name]:
        raise SystemExit(f"error: no mutant is named {', '.join(unknown)}; there are {', '.join(by_name)}")
    return 1 if run_mutants(root, [by_name[name] for name in names] or mutants) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
