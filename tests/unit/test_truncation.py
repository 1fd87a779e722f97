"""Inputs that an upstream has cut by itself are known by its count, and only where that is certain."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.planning import token_estimator, tokens
from engine.planning.silent_truncation import QUICK_BYTES, cut_upstream
from models.embedding import Batch, Input, Options

PROSE = "The quick brown fox jumps over the lazy dog, and nobody is surprised. "


def batch(*inputs: Input) -> Batch:
    size = sum(token_estimator.utf8_bytes(item) for item in inputs if isinstance(item, str))
    return Batch(inputs, range(len(inputs)), 1, 8, Options(), bytes=size)


def served(inputs: list[str], window: int) -> int:
    return sum(min(tokens.count(item), window) for item in inputs)


def test_what_is_short_is_never_looked_at() -> None:
    assert cut_upstream(batch("a", "b"), 2, exact=True) == ()
    assert cut_upstream(batch([1] * 9000), 512, exact=True) == ()


@pytest.mark.parametrize("window", [128, 256, 512, 8192])
def test_with_the_same_tokenizer_the_cut_ones_are_named(window: int) -> None:
    rng = random.Random(window)
    lengths = [window // 14, window // 30, window, 2 * window // 14 * 3, 3]
    inputs = [PROSE * max(1, rng.choice(lengths)) for _ in range(7)] + [PROSE * window]
    found = cut_upstream(batch(*inputs), served(inputs, window), exact=True)
    assert list(found) == [i for i, item in enumerate(inputs) if tokens.count(item) > window]
    assert cut_upstream(batch(*inputs), served(inputs, 10**9), exact=True) == ()


def test_with_another_tokenizer_only_what_is_certain_is_told() -> None:
    """A count of ours may be off by a half, and nothing is said by it."""
    long = PROSE * 1000  # 70,000 bytes
    assert list(cut_upstream(batch(long, PROSE), 512 + 14, exact=False)) == [0]
    assert cut_upstream(batch(PROSE * 60), 512, exact=False) == ()  # 4,200 bytes of which 512 tokens may be all
    assert cut_upstream(batch(long), tokens.count(long) // 2, exact=False) == ()


@pytest.mark.parametrize("text", [" " * 100_000, "=" * 100_000, "\n \t" * 40_000, "हिन्दी में लिखा " * 300])
def test_what_packs_well_is_not_called_cut(text: str) -> None:
    assert cut_upstream(batch(text), max(1, tokens.count(text) // 4), exact=False) == ()


def test_a_count_that_no_window_explains_is_a_wrong_count() -> None:
    assert cut_upstream(batch(PROSE * 1000), 3, exact=True) == ()


def test_where_others_wait_only_so_much_is_counted() -> None:
    """Of 64 texts that is less than half of the window of each, by which nothing is certain."""
    inputs = [PROSE * 400] * 64
    assert len(PROSE) * 30 > QUICK_BYTES // 64
    assert cut_upstream(batch(*inputs), 64 * 512, exact=True, is_quick=True) == ()
    assert list(cut_upstream(batch(*inputs), 64 * 512, exact=True)) == list(range(64))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(64, 2000))
def test_nothing_whole_is_ever_named(repeats: list[int], window: int) -> None:
    inputs = [PROSE * count for count in repeats]
    used = served(inputs, window)
    whole = {i for i, item in enumerate(inputs) if tokens.count(item) <= window}
    assert not whole & set(cut_upstream(batch(*inputs), used, exact=True))
    assert not whole & set(cut_upstream(batch(*inputs), used, exact=False))
