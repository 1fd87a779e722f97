"""`truncate: "mean"`: a text that is too long travels in windows, and comes back as their weighted mean."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.planning import packing, tokens
from engine.upstream.route_batch import Windows, batch_for, window_tokens
from models.embedding import Account, Alias, Batch, Limits, Options, Route
from models.errors import InputTooLong
from providers.fake import FakeUpstream, fake_vectors
from tests import fakes
from tests.fakes import FakeWire, alias, embed_texts, new_run

MEAN = Options(truncate="mean")


def route(tokens_per_input: int = 8, *, inputs: int = 2048, **fields: object) -> Route:
    limits = Limits(inputs_per_call=inputs, tokens_per_input=tokens_per_input)
    return Route(Account("box", "vllm", "http://up"), "m", 16, limits, Decimal(0), tokenizer="cl100k", **fields)  # type: ignore[arg-type]


def batch(*inputs: str | list[int]) -> Batch:
    return Batch(list(inputs), range(7, 7 + len(inputs)), 9, 16, MEAN)


@given(st.text(max_size=300), st.integers(1, 9))
def test_windows_are_the_text_in_order_and_none_is_longer(text: str, limit: int) -> None:
    pieces = tokens.windows(text, limit)
    if text and not any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        assert "".join(str(piece) for piece, _ in pieces) == text
    assert all(1 <= count <= limit for _, count in pieces)


def test_token_arrays_are_cut_as_they_are() -> None:
    assert tokens.windows([1, 2, 3, 4, 5], 2) == [([1, 2], 2), ([3, 4], 2), ([5], 1)]


def test_only_what_is_too_long_travels_in_pieces() -> None:
    long = "one two three four five six seven eight nine ten eleven"
    native, windows = batch_for(batch("short", long, "last"), route())
    assert windows is not None and windows.counts == [1, 2, 1] and windows.positions == [1]
    assert native.inputs[0] == "short" and "".join(map(str, list(native.inputs)[1:3])) == long
    assert native.width == 16 and len(native.indexes) == 4
    assert batch_for(batch("short"), route()) == (batch("short"), None)


def test_the_mean_is_weighted_by_tokens_and_of_length_one() -> None:
    rows = np.array([[2, 0], [1, 0], [0, 1], [0, 5]], dtype=np.float32)
    joined = Windows([1, 2, 1], [3, 8, 4, 2]).joined(rows)
    assert joined[0].tolist() == [2, 0] and joined[2].tolist() == [0, 5]  # whole ones are as they came
    assert joined[1] == pytest.approx(np.array([8, 4]) / np.hypot(8, 4))
    assert joined.dtype == np.float32


def test_a_window_leaves_room_where_the_tokenizer_is_another_and_for_the_models_words() -> None:
    plain, words = route(100), route(100, templates={"query": "one two three {text}"})
    assert window_tokens(plain, "query") == 100
    assert window_tokens(words, "query") == 100 - tokens.count("one two three  ")
    guessed = Route(plain.account, "m", 16, plain.limits, Decimal(0))
    assert window_tokens(guessed, None) == 90


def test_what_no_call_can_hold_is_refused() -> None:
    small = Alias("m", 16, frozenset({16}), 8, "s", (route(8, inputs=10),), Decimal(0))
    assert packing.max_windows(small) == 9
    packing.validate_input("word " * 70, small, MEAN)
    with pytest.raises(InputTooLong, match="72 tokens"):
        packing.validate_input("word " * 80, small, MEAN)


def test_through_a_provider_it_is_the_mean_of_the_windows_vectors() -> None:
    limits = Limits(tokens_per_input=8)
    one = fakes.route("up", limits=limits)
    long = "one two three four five six seven eight nine ten eleven"

    async def work() -> None:
        run = new_run(FakeWire(up=FakeUpstream(width=fakes.WIDTH)), alias(one, max_input_tokens=8), 3)
        outcomes = await embed_texts(run, ["short", long, "last"], options=MEAN, limits=limits)
        rows = [row for block in outcomes.vectors_in_order() for row in np.atleast_2d(block)]
        pieces = tokens.windows(long, window_tokens(one, None))
        vectors = fake_vectors([piece for piece, _ in pieces], fakes.WIDTH, fakes.MODEL)
        mean = sum(vector * count for vector, (_, count) in zip(vectors, pieces, strict=True))
        assert rows[1] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
        assert rows[0].tobytes() == fake_vectors(["short"], fakes.WIDTH, fakes.MODEL)[0].tobytes()
        assert outcomes.truncated() == {1}

    fakes.run(work())
