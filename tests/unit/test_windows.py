"""`truncate: "mean"`: a text that is too long travels in windows, and comes back as their weighted mean."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.embedding.embed import BULK, INTERACTIVE
from engine.planning import packing, tokens
from engine.planning.shorten_after_refusal import MAX_CUTS
from engine.upstream.route_batch import Windows, batch_for, window_tokens
from models.embedding import Account, Alias, Batch, Limits, Options, Route
from models.errors import InputTooLong
from providers.base import UpstreamReply, UpstreamRequest
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


def refuses_above(limit: int, sent: list[list[str]], message: str) -> Callable[[UpstreamRequest], UpstreamReply]:
    """A server whose tokenizer counts two tokens for each of ours, and takes `limit` of its own for an input."""
    up = FakeUpstream(width=fakes.WIDTH)

    def answer(request: UpstreamRequest) -> UpstreamReply:
        texts = orjson.loads(request.body)["input"]
        inputs = [texts] if isinstance(texts, str) else texts
        sent.append(inputs)
        count = max(2 * tokens.count(text) for text in inputs)
        if count > limit:
            error = {"message": message.format(limit=limit, count=count), "code": "context_length_exceeded"}
            return UpstreamReply(400, {}, orjson.dumps({"error": error}))
        return up.answer(request, 0.0).reply

    return answer


NAMES_NO_NUMBER = "The input is too long for this model."
NAMES_BOTH = "This model's maximum context length is {limit} tokens, however you requested {count} tokens."
LONG = " ".join(["one two three four five six seven eight nine ten"] * 4)  # 40 tokens


@pytest.mark.parametrize("lane", [INTERACTIVE, BULK])
@pytest.mark.parametrize("others", [[], ["short", "last"]])
@pytest.mark.parametrize("message", [NAMES_NO_NUMBER, NAMES_BOTH])
def test_windows_that_the_provider_refuses_as_too_long_are_made_shorter(
    message: str, others: list[str], lane: str
) -> None:
    limits = Limits(tokens_per_input=16)
    one = fakes.route("up", limits=limits)
    sent: list[list[str]] = []

    async def work() -> None:
        wire = FakeWire(up=refuses_above(12, sent, message))
        run = new_run(wire, alias(one, max_input_tokens=16), 1 + len(others), lane=lane)
        outcomes = await embed_texts(run, [LONG, *others], options=MEAN, limits=limits)
        assert outcomes.first_error() is None and outcomes.truncated() == {0}
        pieces = next(each for each in reversed(sent) if "".join(each) == LONG)
        assert len(pieces) > 40 // 8 and all(2 * tokens.count(piece) <= 12 for piece in pieces)
        weights = [tokens.count(piece) for piece in pieces]
        mean = np.average(fake_vectors(pieces, fakes.WIDTH, fakes.MODEL), axis=0, weights=weights)
        row = np.vstack([np.atleast_2d(block) for block in outcomes.vectors_in_order()])[0]
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)

    fakes.run(work())
    assert len(sent) <= 8


@pytest.mark.parametrize(("limit", "inputs_per_call", "calls"), [(0, 2048, MAX_CUTS + 1), (12, 4, 1)])
def test_an_input_that_no_shorter_windows_help_fails_after_a_bounded_number_of_calls(
    limit: int, inputs_per_call: int, calls: int
) -> None:
    limits = Limits(inputs_per_call=inputs_per_call, tokens_per_input=16)
    sent: list[list[str]] = []

    async def work() -> None:
        wire = FakeWire(up=refuses_above(limit, sent, NAMES_NO_NUMBER))
        one = fakes.route("up", limits=limits)
        run = new_run(wire, alias(one, max_input_tokens=16), 1, lane=INTERACTIVE)
        outcomes = await embed_texts(run, [LONG], options=MEAN, limits=limits)
        failed = outcomes.first_error()
        assert failed is not None and failed[1].code == "input_too_long"
        assert len(run.calls) <= MAX_CUTS + 1

    fakes.run(work())
    assert len(sent) == calls


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
