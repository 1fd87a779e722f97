"""Failpoints: what their rules say, how often they fire, and that they cost nothing where there are none."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from engine.observability.failpoints import Failpoint, Place, arm, hit
from models.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    "import sys; from engine.observability.failpoints import arm, hit; "
    "arm(sys.argv[1]); hit('after_claim'); print('alive')"
)


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def fired(place: Place, tries: int) -> list[bool]:
    outcomes = []
    for _ in range(tries):
        try:
            hit(place)
            outcomes.append(False)
        except Failpoint:
            outcomes.append(True)
    return outcomes


def test_without_rules_nothing_happens() -> None:
    assert not any(fired("mid_commit", 3))
    arm("after_claim=raise")
    assert not any(fired("mid_commit", 3))


def test_skip_and_times_say_which_firings_count() -> None:
    arm("mid_commit=raise,skip=2,times=2")
    assert fired("mid_commit", 6) == [False, False, True, True, False, False]


def test_chance_is_the_same_for_the_same_seed() -> None:
    arm("mid_commit=raise,probability=0.5,seed=3")
    first = fired("mid_commit", 40)
    arm("mid_commit=raise,probability=0.5,seed=3")
    assert fired("mid_commit", 40) == first
    assert 5 < sum(first) < 35
    arm("mid_commit=raise,probability=0.5,seed=4")
    assert fired("mid_commit", 40) != first


def test_rules_that_share_a_folder_share_their_times(tmp_path: Path) -> None:
    for expected in ([True, True], [True, False], [False, False]):
        arm(f"mid_commit=raise,times=3,shared={tmp_path}")
        assert fired("mid_commit", 2) == expected


def test_sleep_stalls_the_process() -> None:
    arm("before_upstream=sleep,seconds=0.05,times=1")
    started = time.monotonic()
    hit("before_upstream")
    assert time.monotonic() - started >= 0.05


def test_kill_is_a_kill_nine() -> None:
    died = subprocess.run([sys.executable, "-c", PROGRAM, "after_claim=kill"], cwd=ROOT, check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ("nowhere=kill", "nowhere"),
        ("mid_commit=explode", "explode"),
        ("mid_commit", "is no action"),
        ("mid_commit=kill,often=1", "often"),
        ("mid_commit=kill,times=x", "times=x"),
    ],
)
def test_a_wrong_rule_is_refused(rules: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        arm(rules)


def test_each_place_is_in_the_code_once() -> None:
    places = [
        ast.literal_eval(node.args[0])
        for path in [*ROOT.glob("engine/**/*.py"), ROOT / "alembic" / "env.py"]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.hit"
    ]
    assert len(places) == len(set(places))
    assert set(get_args(Place)) - set(places) <= {"during_spool_write"}
