"""embed() with poison in a batch: few calls, only the guilty fail, and an outage is never taken for poison."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.embedding import Flight, embed
from engine.gathered import Gathered
from engine.planning import pack
from engine.stop import Stop
from models.embedding import InputError, Limits, Options
from models.errors import EmbedmillError, UpstreamProtocolError, UpstreamUnavailable
from providers.base import UpstreamReply
from providers.fake import FakeUpstream
from tests.fakes import WIDTH, FakeWire, alias, fake, flight, fly, route, run
from tests.unit.test_embedding_split import check, outcomes

REFUSED = {"when": {"contains": "poison"}, "do": {"status": 400, "message": "Invalid input."}}
FAILED = {"when": {"contains": "poison"}, "do": {"status": 500}}
SPOILED = {"when": {"contains": "poison"}, "do": {"reply": "zero"}}


@st.composite
def batches(draw: st.DrawFn, most: int = 300) -> list[str]:
    """One batch with some poison in it: mostly one or two, sometimes many."""
    count = draw(st.integers(1, most))
    poisoned = draw(
        st.sets(st.integers(0, count - 1), min_size=1, max_size=3)
        | st.integers(1, 4).map(lambda step: set(range(0, count, step)))
    )
    return [f"poison {i}" if i in poisoned else f"text {i}" for i in range(count)]


def guilty_in(texts: list[str], code: str) -> dict[int, str]:
    return {i: code for i, text in enumerate(texts) if "poison" in text}


def bound(texts: list[str]) -> float:
    return 1 + len(guilty_in(texts, "")) * 2 * math.log2(len(texts))


@settings(max_examples=30)
@given(batches())
def test_refused_inputs_are_found_in_few_calls(texts: list[str]) -> None:
    flying = flight(FakeWire(up=fake(REFUSED)), alias(route()), len(texts))
    check(run(fly(flying, texts)), texts, guilty_in(texts, "upstream_rejected"))
    assert len(flying.calls) <= bound(texts)


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("position", range(32))
def test_one_refused_input_in_every_position(status: int, position: int) -> None:
    texts = ["poison" if i == position else f"text {i}" for i in range(32)]
    rule = {"when": {"contains": "poison"}, "do": {"status": status, "message": "No."}}
    flying = flight(FakeWire(up=fake(rule)), alias(route()), 32)
    check(run(fly(flying, texts)), texts, {position: "input_too_long" if status == 413 else "upstream_rejected"})
    assert len(flying.calls) <= bound(texts)


async def beside_traffic(flying: Flight, texts: list[str]) -> Gathered:
    """Embed the texts as one batch while others use the same routes."""

    async def others() -> None:
        while True:
            beside = dataclasses.replace(flying, landed=Gathered(1, WIDTH), calls=[], stop=Stop())
            try:
                await fly(beside, ["beside"])
            except EmbedmillError:
                pass
            await asyncio.sleep(0.02)

    traffic = asyncio.create_task(others())
    try:
        return await fly(flying, texts)
    finally:
        traffic.cancel()


@pytest.mark.parametrize(("rule", "code"), [(FAILED, "upstream_rejected"), (SPOILED, "invalid_upstream_response")])
@settings(max_examples=15, deadline=None)
@given(texts=batches(most=130))
def test_inputs_that_a_healthy_route_fails_on_are_found_too(rule: dict[str, Any], code: str, texts: list[str]) -> None:
    flying = flight(FakeWire(up=fake(rule)), alias(route()), len(texts))
    check(run(beside_traffic(flying, texts)), texts, guilty_in(texts, code))
    # A batch that is nearly one input is tried again as any other call is, which so small a bound has no room for.
    assert len(flying.calls) <= bound(texts) + (4 if len(texts) < 32 else 0)


@pytest.mark.parametrize("routes", [2, 3])
@pytest.mark.parametrize("position", [0, 1, 63, 64, 100, 127])
def test_to_search_on_one_route_is_enough(routes: int, position: int) -> None:
    """Each is tried with the whole at first and with the guilty one in the end, and one with what is between."""
    texts = ["poison" if i == position else f"text {i}" for i in range(128)]
    hosts = {f"up{number}": fake(FAILED) for number in range(routes)}
    flying = flight(FakeWire(**hosts), alias(*(route(host) for host in hosts)), 128)
    check(run(beside_traffic(flying, texts)), texts, {position: "upstream_rejected"})
    assert len(flying.calls) <= bound(texts) + 3 * (routes - 2)


@pytest.mark.parametrize("count", [2, 3, 10, 128])
@pytest.mark.parametrize("position", [0, 1, -1])
def test_one_such_input_needs_no_traffic_beside_it(count: int, position: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    texts[position] = "poison"
    flying = flight(FakeWire(up=fake(FAILED)), alias(route()), count)
    check(run(fly(flying, texts)), texts, {position % count: "upstream_rejected"})
    assert len(flying.calls) <= bound(texts) + (5 if count < 32 else 0)


@pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 503}, {"reply": "html"}, {"reply": "short"}])
@pytest.mark.parametrize("lane", ["bulk", "interactive"])
def test_an_outage_is_not_searched(trouble: dict[str, object], lane: str) -> None:
    texts = [f"text {i}" for i in range(300)]
    wire = FakeWire(up=fake({"do": trouble}))
    flying = flight(wire, alias(route()), 300, lane=lane)
    with pytest.raises((UpstreamUnavailable, UpstreamProtocolError)):
        run(fly(flying, texts))
    sizes = [len(orjson.loads(request.body)["input"]) for request in wire.sent]
    assert sizes == [300, 300, 300, 1, 1] if lane == "bulk" else [300, 300, 300]
    assert isinstance(flying.landed, Gathered) and flying.landed.parts == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20))
def test_an_outage_that_begins_at_any_moment_condemns_nobody(good_calls: int, per_call: int) -> None:
    calls = 0

    def dies(reply: UpstreamReply) -> UpstreamReply:
        nonlocal calls
        calls += 1
        return reply if calls <= good_calls else UpstreamReply(500, {}, b"")

    texts = [f"text {i}" for i in range(200)]
    wire = FakeWire(up=fake())
    wire.edit = dies
    flying = flight(wire, alias(route()), 200)
    try:
        run(fly(flying, texts, limits=Limits(inputs_per_call=per_call), concurrency=8))
    except UpstreamUnavailable:
        pass
    assert isinstance(flying.landed, Gathered)
    assert all(isinstance(each, bytes) for each in outcomes(flying.landed, 200, whole=False).values())
    assert len(wire.sent) <= good_calls + 8 * 16


def test_a_route_that_fails_at_random_condemns_nobody() -> None:
    texts = [f"text {i}" for i in range(3000)]
    for seed in range(3):
        upstream = flaky(seed)
        flying = flight(FakeWire(up=upstream), alias(route()), len(texts))
        left = list(range(len(texts)))
        for _ in range(9):  # as many claims as a shard gets
            flying = dataclasses.replace(flying, stop=Stop())
            batches = pack([texts[i] for i in left], left, Limits(inputs_per_call=128), WIDTH, Options())
            try:
                run(embed(flying, batches, concurrency=4))
            except UpstreamUnavailable:
                pass
            assert isinstance(flying.landed, Gathered)
            found = outcomes(flying.landed, len(texts), whole=False)
            left = [i for i in left if i not in found]
        assert left == [] and not any(isinstance(each, InputError) for each in found.values())


def flaky(seed: int) -> FakeUpstream:
    upstream = fake({"when": {"probability": 0.3}, "do": {"status": 500}})
    upstream.script.seed = seed
    return upstream


def test_another_route_of_the_space_takes_what_one_fails_on() -> None:
    texts = ["poison" if i == 5 else f"text {i}" for i in range(32)]
    wire = FakeWire(first=fake(FAILED), second=fake())
    flying = flight(wire, alias(route("first"), route("second", priority=1)), 32)
    check(run(fly(flying, texts)), texts, {})
    assert wire.hosts_called[-1] == "second" and len(flying.calls) <= 4
