"""Repeated ids are found exactly, whatever their number and order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batches.custom_ids import CustomIdDigests, CustomIdHashes, are_among


def plain(ids: list[str]) -> tuple[list[int], list[int]]:
    """Positions that repeat an id, and where it was first, found the slow way."""
    first: dict[str, int] = {}
    again = [(at, first[each]) for at, each in enumerate(ids) if first.setdefault(each, at) != at]
    return [at for at, _ in again], [at for _, at in again]


@given(st.lists(st.sampled_from(["a", "b", "c", "", "é", "a\0", "d" * 300]), max_size=40))
def test_digests_find_what_a_dictionary_finds(ids: list[str]) -> None:
    digests = CustomIdDigests()
    for each in ids:
        digests.add(each)
    again, first = digests.repetitions()
    assert (again.tolist(), first.tolist()) == plain(ids)


@given(st.lists(st.integers(0, 30).map(str), max_size=60))
def test_hashes_find_all_candidates(ids: list[str]) -> None:
    hashes = CustomIdHashes()
    for each in ids:
        hashes.add_hash(hash(each))
    repeated = hashes.repeated()
    assert sorted(repeated.tolist()) == sorted({hash(each) for each in ids if ids.count(each) > 1})
    if len(repeated):
        assert are_among(ids, repeated) == [at for at, each in enumerate(ids) if ids.count(each) > 1]


@pytest.mark.parametrize("seed", range(3))
def test_many_ids(seed: int) -> None:
    rng = random.Random(seed)
    ids = [f"id-{rng.randrange(60_000)}" for _ in range(50_000)]
    digests = CustomIdDigests()
    for each in ids:
        digests.add(each)
    again, first = digests.repetitions()
    assert (again.tolist(), first.tolist()) == plain(ids)


def test_a_hash_that_two_ids_share_makes_no_repetition() -> None:
    digests = CustomIdDigests()  # the second look compares the ids themselves
    for each in ("a", "b", "a"):
        digests.add(each)
    assert digests.repetitions()[0].tolist() == [2]
    assert are_among(["a", "b"], np.array([hash("b")], dtype=np.int64)) == [1]
