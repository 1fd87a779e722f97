"""Planning, as properties: packing keeps every input, in order, within four limits at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.planning import packing, token_estimator, tokens
from engine.planning.token_estimator import EVIDENCE_CALLS, TokenEstimator
from models.embedding import Account, Alias, Batch, Input, Limits, Options, Route
from models.errors import InputTooLong, InvalidInput, UnsupportedParameter

some_inputs: st.SearchStrategy[list[Input]] = st.lists(
    st.text(min_size=1, max_size=60) | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20), max_size=40
)
some_limits = st.builds(
    Limits,
    inputs_per_call=st.integers(1, 12),
    tokens_per_input=st.integers(1, 50),
    tokens_per_call=st.integers(1, 120),
    bytes_per_call=st.integers(1, 400),
)
NO_OPTIONS = Options()


def json_bytes(item: Input) -> int:
    """What an input can weigh at the most on the wire, escapes aside."""
    return len(item.encode("utf-8", "surrogatepass")) if isinstance(item, str) else 2 * len(item)


def alias(allowed: frozenset[int] | range = range(1, 17), limit: int = 8192, *, accepts_tokens: bool = True) -> Alias:
    route = Route(Account("a", "openai", "http://up"), "m", 16, Limits(), Decimal(0), accepts_tokens=accepts_tokens)
    return Alias("m", 16, allowed, limit, "s", (route,), Decimal(0))


def batch(inputs: list[Input]) -> Batch:
    return Batch(inputs, [i * 10 for i in range(len(inputs))], 99, 16, NO_OPTIONS, is_bare_string=len(inputs) == 1)


@given(some_inputs, some_limits)
def test_packing_keeps_every_input_in_order(inputs: list[Input], limits: Limits) -> None:
    batches = list(packing.pack(inputs, range(100, 100 + len(inputs)), limits, 16, NO_OPTIONS))
    assert [item for each in batches for item in each.inputs] == inputs
    assert [index for each in batches for index in each.indexes] == list(range(100, 100 + len(inputs)))
    assert all(len(each.inputs) == len(each.indexes) > 0 and each.width == 16 for each in batches)


@given(some_inputs, some_limits)
def test_a_batch_breaks_a_limit_only_when_it_is_one_input(inputs: list[Input], limits: Limits) -> None:
    for each in packing.pack(inputs, range(len(inputs)), limits, 16, NO_OPTIONS):
        assert each.tokens == sum(map(token_estimator.estimate, each.inputs))
        if len(each.inputs) == 1:
            continue
        assert len(each.inputs) <= limits.inputs_per_call
        assert max(map(token_estimator.estimate, each.inputs)) <= limits.tokens_per_input
        assert each.tokens <= limits.tokens_per_call
        assert sum(map(json_bytes, each.inputs)) <= limits.bytes_per_call


SCRIPTS = [
    "the quick brown fox ",
    "données ",
    "東京タワーは高い",
    "x = foo(bar)\n",
    "😀🎉",
    "\u0000\x07",
    '"\\"',
    "7391 ",
    " " * 9,
]
any_script: st.SearchStrategy[list[Input]] = st.lists(
    st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=12).map("".join)
    | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30),
    max_size=40,
)


def sizes(items: Sequence[Input]) -> tuple[int, int, int, int]:
    """Inputs, tokens of the longest, tokens in all, bytes of the JSON around all: exactly."""
    counts = [tokens.count(item) for item in items]
    return len(items), max(counts), sum(counts), len(orjson.dumps(items)) + packing.BYTES_AROUND_A_CALL


def within(items: Sequence[Input], limits: Limits) -> bool:
    inputs, longest, together, size = sizes(items)
    return (
        inputs <= limits.inputs_per_call
        and longest <= limits.tokens_per_input
        and together <= limits.tokens_per_call
        and size <= limits.bytes_per_call
    )


@settings(max_examples=150)
@given(
    any_script,
    st.builds(
        Limits,
        inputs_per_call=st.integers(1, 30),
        tokens_per_input=st.integers(5, 60),
        tokens_per_call=st.integers(5, 400),
        bytes_per_call=st.integers(500, 2500),
    ),
)
def test_counted_batches_keep_every_limit_and_are_as_few_as_can_be(inputs: list[Input], limits: Limits) -> None:
    batches = list(packing.pack(inputs, range(len(inputs)), limits, 16, NO_OPTIONS, exact=True))
    assert [item for each in batches for item in each.inputs] == inputs
    for each, following in itertools.zip_longest(batches, batches[1:]):
        assert len(each.inputs) == 1 or within(each.inputs, limits)
        assert each.tokens <= limits.tokens_per_call or len(each.inputs) == 1
        # In order, whoever fills each call to the brim needs the fewest. Two bytes an input are allowed for a comma.
        if following is not None:
            more = [*each.inputs, following.inputs[0]]
            tight = replace(limits, bytes_per_call=limits.bytes_per_call - 2 * len(more))
            assert not within(more, tight)


@pytest.mark.parametrize(
    ("words", "truth"), [("plain English words ", 1 / 4.5), ("東京タワー", 1 / 2.2), ("0x7f3a", 0.6)]
)
def test_a_route_teaches_how_many_tokens_its_texts_are(words: str, truth: float) -> None:
    estimator = TokenEstimator()
    text_bytes = token_estimator.utf8_bytes(words) * 500
    for call in range(EVIDENCE_CALLS - 1):
        estimator.observe(text_bytes, int(text_bytes * truth))
        assert estimator.tokens_per_byte >= token_estimator.DEFAULT_TOKENS_PER_BYTE, call
    estimator.observe(text_bytes, int(text_bytes * truth))
    assert truth < estimator.tokens_per_byte <= truth * 1.2


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=EVIDENCE_CALLS, max_size=60))
def test_whatever_is_reported_the_ratio_stays_one(calls: list[tuple[int, int]]) -> None:
    estimator = TokenEstimator()
    for text_bytes, counted in calls:
        estimator.observe(text_bytes, counted)
    assert 1 / 8 <= estimator.tokens_per_byte <= 1.0


@given(some_inputs.filter(bool))
def test_halves_are_the_batch_in_two(inputs: list[Input]) -> None:
    whole = batch(inputs)
    low, high = packing.halves(whole)
    assert [*low.inputs, *high.inputs] == inputs and [*low.indexes, *high.indexes] == whole.indexes
    assert abs(len(low.inputs) - len(high.inputs)) <= 1
    assert not (low.is_bare_string or high.is_bare_string) and low.tokens == sum(
        map(token_estimator.estimate, low.inputs)
    )


@given(st.data())
def test_the_chosen_inputs_keep_their_indexes(data: st.DataObject) -> None:
    inputs = data.draw(some_inputs.filter(bool))
    positions = data.draw(st.lists(st.integers(0, len(inputs) - 1), min_size=1, unique=True))
    few = packing.select(batch(inputs), positions)
    assert few.inputs == [inputs[i] for i in positions] and few.indexes == [i * 10 for i in positions]
    assert few.tokens == sum(map(token_estimator.estimate, few.inputs))


def test_a_single_string_stays_one_only_while_it_is_the_whole_batch() -> None:
    (one,) = packing.pack(["a"], [0], Limits(), 16, NO_OPTIONS, single=True)
    assert one.is_bare_string and not packing.halves(one)[1].is_bare_string


def test_limits_of_several_routes_are_the_tightest_of_each() -> None:
    account = Account("a", "openai", "http://a")
    routes = [
        Route(account, "m", 16, limits, Decimal(0)) for limits in (Limits(9, 100, 1000, 50), Limits(20, 10, 2000, 40))
    ]
    assert packing.limits_of(routes) == Limits(9, 10, 1000, 40)
    assert packing.limits_of(routes, inputs_per_call=3).inputs_per_call == 3
    assert packing.limits_of(routes, inputs_per_call=300).inputs_per_call == 9


@pytest.mark.parametrize(("asked", "width"), [(None, 16), (16, 16), (1, 1), (15, 15)])
def test_widths_that_the_model_has(asked: int | None, width: int) -> None:
    assert packing.resolve_dimensions(alias(), asked) == width


@pytest.mark.parametrize(
    ("allowed", "asked", "said"),
    [(range(1, 17), 17, "1 to 16"), (frozenset({4, 16}), 8, "4, 16"), (range(1, 17), 0, "1 to 16")],
)
def test_widths_that_it_has_not(allowed: frozenset[int] | range, asked: int, said: str) -> None:
    with pytest.raises(UnsupportedParameter, match=said) as refused:
        packing.resolve_dimensions(alias(allowed), asked)
    assert (refused.value.param, refused.value.code) == ("dimensions", "invalid_value")


@pytest.mark.parametrize(
    ("item", "accepts_tokens", "code"),
    [
        ("", True, "empty_input"),
        ([], True, "empty_input"),
        ([1], False, "tokens_not_supported"),
        ([-1], True, "invalid_input"),
        ([2**31], True, "invalid_input"),
        ([2**70], True, "invalid_input"),
    ],
)
def test_inputs_that_no_provider_need_see(item: Input, accepts_tokens: bool, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        packing.validate_input(item, alias(accepts_tokens=accepts_tokens), NO_OPTIONS)
    assert refused.value.code == code


@pytest.mark.parametrize("item", ["word " * 9, [1] * 9])
def test_an_over_long_input_is_refused_or_cut(item: Input) -> None:
    with pytest.raises(InputTooLong, match="8 tokens"):
        packing.validate_input(item, alias(limit=8), NO_OPTIONS)
    cutting = Options(truncate="end")
    packing.validate_input(item, alias(limit=8), cutting)
    short = packing.truncate_input(item, alias(limit=8), cutting)
    assert (
        tokens.is_within(short, 8)
        and short == item[: len(short)]
        and packing.truncate_input(item, alias(), NO_OPTIONS) == item
    )
