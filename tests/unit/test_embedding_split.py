"""embed() when inputs are at fault: the guilty are found in few calls, and no input ever gets another's vector."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.embedding.collector import OutcomeCollector
from models.embedding import InputError, Limits, Options
from models.errors import EmbedmillError, RouteDown, UpstreamProtocolError, UpstreamUnavailable
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake import fake_vectors
from tests.fakes import MODEL, WIDTH, FakeWire, alias, embed_texts, fake, new_run, route, run


def outcomes(gathered: OutcomeCollector, count: int, *, whole: bool = True) -> dict[int, bytes | InputError]:
    """One outcome an input; fails when an input has two or, where the run came to its end, none."""
    found: dict[int, bytes | InputError] = {}
    for part in gathered.outcomes:
        for position, index in enumerate(part.indexes):
            assert index not in found
            if part.vectors is not None:
                assert part.error is None and part.vectors.shape == (len(part.indexes), WIDTH)
                found[index] = part.vectors[position].tobytes()
            else:
                assert part.error is not None
                found[index] = part.error
    assert not whole or sorted(found) == list(range(count))
    return found


def check(gathered: OutcomeCollector, texts: list[str], offending_position: dict[int, str]) -> None:
    """Exactly the guilty have errors, of these codes; every other input has its own vector."""
    rows = fake_vectors(texts, WIDTH, MODEL)
    for index, outcome in outcomes(gathered, len(texts)).items():
        if index in offending_position:
            assert isinstance(outcome, InputError) and outcome.code == offending_position[index]
        else:
            assert outcome == rows[index].tobytes()


@pytest.mark.parametrize("offending_position", [[0], [5], [99], [3, 50, 98]])
def test_an_input_that_the_upstream_names_needs_no_search(offending_position: list[int]) -> None:
    texts = ["b" * 32_772 if i in offending_position else f"text {i}" for i in range(100)]
    wire = FakeWire(up=fake())
    embed_run = new_run(wire, alias(route()), 100)
    together = Limits(tokens_per_input=20_000)  # else the long ones travel alone
    check(
        run(embed_texts(embed_run, texts, limits=together)), texts, dict.fromkeys(offending_position, "input_too_long")
    )
    # The whole, one call of ours, and the one that is named and the rest; with several, smaller and smaller rests.
    assert len(wire.sent) <= (4 if len(offending_position) == 1 else 14)


def test_an_older_upstream_names_nobody_and_is_searched() -> None:
    texts = ["b" * 32_772 if i == 11 else f"text {i}" for i in range(32)]
    wire = FakeWire(up=fake(names_offending_input=False))
    together = Limits(tokens_per_input=20_000)
    check(run(embed_texts(new_run(wire, alias(route()), 32), texts, limits=together)), texts, {11: "input_too_long"})
    assert len(wire.sent) <= 11


def test_a_name_outside_the_batch_is_not_believed() -> None:
    rule = {"when": {"contains": "poison"}, "do": {"status": 400, "message": "Invalid 'input[99]': no."}}
    texts = ["a", "poison", "c"]
    check(run(embed_texts(new_run(FakeWire(up=fake(rule)), alias(route()), 3), texts)), texts, {1: "upstream_rejected"})


def test_a_batch_that_is_too_large_is_halved_until_it_is_not() -> None:
    def small_only(request: UpstreamRequest) -> UpstreamReply:
        if len(orjson.loads(request.body)["input"]) > 3:
            return UpstreamReply(413, {}, b"too large")
        return fake().answer(request, 0.0).reply

    texts = [f"text {i}" for i in range(10)]
    check(run(embed_texts(new_run(FakeWire(up=small_only), alias(route()), 10), texts)), texts, {})


@pytest.mark.parametrize(
    ("message", "most"),
    [("batch size > maximum allowed batch size", 3), ("Request body too large.", 3), ("maximum request size is 9", 3)],
)
def test_a_call_that_was_too_large_is_not_made_again(message: str, most: int) -> None:
    refused = 0

    def small_only(request: UpstreamRequest) -> UpstreamReply:
        nonlocal refused
        if len(orjson.loads(request.body)["input"]) > most:
            refused += 1
            return UpstreamReply(413, {}, orjson.dumps({"error": {"message": message}}))
        return fake().answer(request, 0.0).reply

    texts = [f"text {i:04}" for i in range(400)]
    embed_run = new_run(FakeWire(up=small_only), alias(route()), 400)
    check(run(embed_texts(embed_run, texts, limits=Limits(inputs_per_call=16), concurrency=1)), texts, {})
    # The first batch and its first halves (16, 8, 4), and the same of the one that was taken up with it.
    assert refused == 6


def test_a_poison_that_is_called_too_large_teaches_nothing() -> None:
    rule = {"when": {"contains": "poison"}, "do": {"status": 413, "message": "No."}}
    texts = ["poison" if i == 5 else f"text {i}" for i in range(320)]
    wire = FakeWire(up=fake(rule))
    embed_run = new_run(wire, alias(route()), 320)
    check(
        run(embed_texts(embed_run, texts, limits=Limits(inputs_per_call=32), concurrency=1)),
        texts,
        {5: "input_too_long"},
    )
    assert [len(orjson.loads(request.body)["input"]) for request in wire.sent[-9:]] == [32] * 9


def test_an_input_too_large_by_itself() -> None:
    text = "a" * 20_000
    rule = {"when": {"contains": text}, "do": {"status": 413}}
    check(run(embed_texts(new_run(FakeWire(up=fake(rule)), alias(route()), 1), [text])), [text], {0: "input_too_long"})


def test_a_text_that_may_be_cut_is_cut_until_it_is_taken() -> None:
    text = "b" * 40_000
    wire = FakeWire(up=fake())
    gathered = run(embed_texts(new_run(wire, alias(route()), 2), [text, "short"], options=Options(truncate="end")))
    check(gathered, [text[:30_000], "short"], {})
    refused = run(embed_texts(new_run(wire, alias(route()), 2), [text, "short"], options=Options(truncate="none")))
    check(refused, [text, "short"], {0: "input_too_long"})


UNKNOWN_WORDS = {"error": "kv cache slot missing"}
CONTEXT_SIZE = {"type": "exceed_context_size_error", "n_prompt_tokens": 40, "n_ctx": 10}


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        # The provider's own numbers, here of an input four times too long: one cut.
        ({"status": 500, "body": {"error": CONTEXT_SIZE}}, 950),
        # No numbers: three quarters, then halves.
        ({"status": 400, "body": {"error": "the input length exceeds the context length"}}, 750),
        ({"status": 500, "body": {"error": "input length exceeds maximum context length"}}, 750),
        ({"status": 422, "body": {"message": "Input validation error: `inputs` must have less than 9 tokens"}}, 750),
        # Words that nobody knows, of an input that is long: halves.
        ({"status": 400, "body": UNKNOWN_WORDS}, 1000),
        ({"status": 413, "body": "no"}, 1000),
        ({"status": 422, "body": {"detail": "prompt rejected"}}, 1000),
    ],
)
def test_too_long_in_the_words_of_many_servers(rule: dict[str, Any], kept: int) -> None:
    text = "long text " * 400
    wire = FakeWire(up=fake({"when": {"longer_than": 1000}, "do": rule}))
    embed_run = new_run(wire, alias(route()), 2)
    gathered = run(embed_texts(embed_run, [text, "short"], options=Options(truncate="end")))
    check(gathered, [text[:kept], "short"], {})
    assert len(embed_run.calls) <= 9


@pytest.mark.parametrize("body", [UNKNOWN_WORDS, {"error": "the input length exceeds the context length"}])
def test_cutting_ends_where_it_does_not_help(body: object) -> None:
    poison = "poison " * 1000
    embed_run = new_run(
        FakeWire(up=fake({"when": {"contains": "poison"}, "do": {"status": 400, "body": body}})), alias(route()), 1
    )
    gathered = run(embed_texts(embed_run, [poison], options=Options(truncate="end")))
    code = "upstream_rejected" if body is UNKNOWN_WORDS else "input_too_long"
    check(gathered, [poison], {0: code})
    assert len(embed_run.calls) <= 9 + 3


def test_a_short_input_is_refused_for_something_else_than_its_length() -> None:
    embed_run = new_run(
        FakeWire(up=fake({"when": {"contains": "short"}, "do": {"status": 400, "body": UNKNOWN_WORDS}})),
        alias(route()),
        1,
    )
    check(run(embed_texts(embed_run, ["short"], options=Options(truncate="end"))), ["short"], {0: "upstream_rejected"})
    assert len(embed_run.calls) <= 4  # once more with floats, and one of ours with and without them


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("This model's maximum context length is 512 tokens. However, you requested 700 tokens", "512"),
        ("Input is too long for requested model.", None),
    ],
)
def test_the_limit_that_is_told_is_the_providers_or_none(message: str, told: str | None) -> None:
    embed_run = new_run(
        FakeWire(up=fake({"when": {"contains": "xyz"}, "do": {"status": 400, "message": message}})), alias(route()), 1
    )
    (outcome,) = outcomes(run(embed_texts(embed_run, ["xyz"])), 1).values()
    assert isinstance(outcome, InputError) and outcome.code == "input_too_long"
    assert [number for number in outcome.message.split() if number.isdigit()] == ([told] if told else [])


def test_token_arrays_on_a_route_that_takes_text_only() -> None:
    wire = FakeWire(up=fake())
    text_only = alias(dataclasses.replace(route(), accepts_tokens=False))
    gathered = run(embed_texts(new_run(wire, text_only, 2), [[1], [2]]))
    assert [getattr(each, "code", None) for each in outcomes(gathered, 2).values()] == ["tokens_not_supported"] * 2
    assert wire.sent == []


Edit = Callable[[dict[str, Any], int], object]


def _swap_index(document: dict[str, Any], i: int) -> object:
    data = document["data"]
    data[i % len(data)]["index"] = (i + 1) % (len(data) + 1)
    return document


def _spoil(number: float) -> Edit:
    def edit(document: dict[str, Any], i: int) -> object:
        item = document["data"][i % len(document["data"])]
        row = np.full(WIDTH, number, dtype="<f4")
        item["embedding"] = pybase64.b64encode_as_string(row.tobytes())
        return document

    return edit


def _only(change: Callable[[list[Any], int], object]) -> Edit:
    def edit(document: dict[str, Any], i: int) -> object:
        change(document["data"], i % max(len(document["data"]), 1))
        return document

    return edit


EDITS: dict[str, Edit] = {
    "as it is": lambda document, i: document,
    "dropped": _only(lambda data, i: data.pop(i)),
    "doubled": _only(lambda data, i: data.insert(i, data[i])),
    "rotated": _only(lambda data, i: data.append(data.pop(0))),
    "reversed": _only(lambda data, i: data.reverse()),
    "foreign index": _only(lambda data, i: data[i].update(index=len(data) + i)),
    "neighbour's index": _swap_index,
    "null vector": _only(lambda data, i: data[i].update(embedding=None)),
    "short vector": _only(lambda data, i: data[i].update(embedding=[1.0] * (WIDTH - 1))),
    "NaN": _spoil(math.nan),
    "infinity": _spoil(math.inf),
    "zeros": _spoil(0.0),
    "error in a 200": lambda document, i: {"error": {"message": "oops"}},
    "a list": lambda document, i: [document],
}
# Applied to one reply each. Two of them together could imitate an honest reply, which nobody could tell from one.
edits = st.lists(st.tuples(st.sampled_from(sorted(EDITS)), st.integers(0, 50)), max_size=60)


@settings(max_examples=200)
@given(st.integers(1, 9), edits, st.integers(1, 9))
def test_whatever_is_done_to_replies_no_input_gets_a_wrong_vector(
    count: int, plan: list[tuple[str, int]], per_call: int
) -> None:
    texts = [f"text {i}" for i in range(count)]
    wire = FakeWire(up=fake())
    steps = iter(plan)

    def edit(reply: UpstreamReply) -> UpstreamReply:
        name, i = next(steps, ("as it is", 0))
        return UpstreamReply(200, {}, orjson.dumps(EDITS[name](orjson.loads(reply.body), i)))

    wire.edit = edit
    embed_run = new_run(wire, alias(route()), count)
    whole = True
    try:
        run(embed_texts(embed_run, texts, limits=Limits(inputs_per_call=per_call)))
    except (UpstreamProtocolError, UpstreamUnavailable, RouteDown):
        whole = False  # nothing but bad answers for so long that nobody can tell poison from an outage
    assert isinstance(embed_run.on_outcome, OutcomeCollector)
    rows = fake_vectors(texts, WIDTH, MODEL)
    for index, outcome in outcomes(embed_run.on_outcome, count, whole=whole).items():
        if isinstance(outcome, InputError):
            # An error object in a 200 is a fault of the provider, the rest are replies that cannot be used.
            assert outcome.code in ("invalid_upstream_response", "upstream_rejected") and outcome.retryable
        else:
            assert outcome == rows[index].tobytes()


def test_gaps_are_never_filled() -> None:
    gathered = OutcomeCollector(3, WIDTH)
    for part in run(embed_texts(new_run(FakeWire(up=fake()), alias(route()), 2), ["a", "b"])).outcomes:
        gathered(part)
    with pytest.raises(EmbedmillError) as broken:  # C22: it was one that says "again"
        gathered.vectors_in_order()
    assert (broken.value.code, broken.value.retryable) == ("internal_error", False)
