"""The slope that row 50 judges by: what grows with the inputs is seen through noise, and a step is not taken for it."""

from __future__ import annotations

import random
from typing import cast

from tests.faults.memory import Memory
from tests.system.stack import Stack

MB = 2**20


def slope(growth_mb: float, *, step_mb: float = 0.0) -> float:
    """Of 100,000 inputs, with so much growth for each 10,000, noise of half a MB, and a step in the middle."""
    memory, chance = Memory(cast("Stack", None)), random.Random(7)
    for done in range(0, 100_000, 1_000):
        grown_mb = growth_mb * done / 10_000 + chance.uniform(-0.5, 0.5) + (step_mb if done >= 80_000 else 0)
        memory.add(1, done, int((100 + grown_mb) * MB))
    memory.add(2, 0, MB)  # a process that was not there all the time
    [(pid, found)] = memory.slopes_mb(after=20_000).items()
    assert pid == 1
    return found


def test_growth_is_found_as_it_is() -> None:
    assert -0.1 < slope(0.0) < 0.1
    assert 1.4 < slope(1.5) < 1.6


def test_one_step_is_no_growth_and_hides_none() -> None:
    assert slope(0.0, step_mb=30) < 1.0
    assert slope(3.0, step_mb=-10) > 1.0
