"""Seen: the first occurrence of every input is found, in memory and in the file alike."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.jobs.ingest.dedup import DuplicateIndex, fingerprint
from models.embedding import Input

INPUTS = st.lists(st.one_of(st.none(), st.sampled_from("abcdefg"), st.lists(st.integers(0, 3), min_size=1, max_size=2)))


def firsts_of(inputs: Sequence[Input | None]) -> dict[int, int]:
    """The plain answer: index of an input that occurred before, and where first."""
    known: dict[object, int] = {}
    return {
        index: first
        for index, item in enumerate(inputs)
        if item is not None
        and (first := known.setdefault(item if isinstance(item, str) else tuple(item), index)) != index
    }


def found_by(seen: DuplicateIndex, inputs: Sequence[Input | None], run: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for start in range(0, len(inputs), run):
        duplicates = seen.find_duplicates(inputs[start : start + run], start)
        found |= {start + position: first for position, first in duplicates.items()}
    return found


@given(INPUTS, st.integers(1, 7), st.sampled_from([0, 3, 1000]))
def test_every_twin_names_its_first(inputs: list[Input | None], run: int, most_in_memory: int) -> None:
    assert found_by(DuplicateIndex(max_in_memory=most_in_memory), inputs, run) == firsts_of(inputs)


@pytest.mark.parametrize("most_in_memory", [500, 100_000])
def test_a_long_upload_is_known_to_its_beginning(most_in_memory: int) -> None:
    chance = random.Random(7)
    inputs = [f"text {chance.randrange(index // 2 + 1)}" for index in range(6000)]
    assert found_by(DuplicateIndex(max_in_memory=most_in_memory), inputs, 700) == firsts_of(inputs)


def test_a_text_is_no_array_of_its_bytes() -> None:
    ids = [ord("a"), 0]
    as_text = b"".join(number.to_bytes(8, "little") for number in ids).decode()
    assert fingerprint(ids) != fingerprint(as_text)
    assert fingerprint([1, 23]) != fingerprint([12, 3])


def test_memory_stays_flat() -> None:
    seen = DuplicateIndex(max_in_memory=2000)
    grown: list[int] = []
    tracemalloc.start()
    for start in range(0, 40_000, 2000):
        seen.find_duplicates([f"text {index}" for index in range(start, start + 2000)], start)
        grown.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # The file's cache is the only part that tracemalloc does not see; it has a limit of its own.
    assert grown[-1] - grown[4] < 100_000
