"""embed() with poison in a batch: few calls, only the guilty fail, and an outage is never taken for poison."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Coroutine
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cancellation import CancellationToken
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import EmbedRun, embed
from engine.planning.packing import pack
from models.embedding import Limits, Options
from models.errors import EmbedmillError, RouteDown, UpstreamError, UpstreamProtocolError, UpstreamUnavailable
from providers.base import UpstreamReply
from tests.fakes import WIDTH, FakeWire, alias, embed_texts, fake, new_run, route, run
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


def sends_bound(texts: list[str]) -> int:
    """Inputs that one claim may send: four times the batch and 64, controls beside."""
    return 4 * len(texts) + 64 + 64


def settle(embed_run: EmbedRun, texts: list[str], *, beside: bool = False) -> OutcomeCollector:
    """Claim after claim, as a shard's worker would, until every input has its outcome."""
    gathered = embed_run.on_outcome
    assert isinstance(gathered, OutcomeCollector)
    for _ in range(20):
        left = [i for i in range(len(texts)) if i not in outcomes(gathered, len(texts), whole=False)]
        if not left:
            break
        embed_run.stop, embed_run.checking = CancellationToken(), asyncio.Lock()  # of this run, and its event loop
        batches = pack([texts[i] for i in left], left, Limits(), WIDTH, Options())
        work = embed(embed_run, batches, concurrency=4)
        before = len(embed_run.calls)
        try:
            run(beside_traffic(embed_run, work) if beside else work)
        except UpstreamError:
            pass
        assert sum(call.inputs for call in embed_run.calls[before:]) <= sends_bound([texts[i] for i in left])
    return gathered


@settings(max_examples=15)
@given(batches())
def test_refused_inputs_are_found_in_few_calls(texts: list[str]) -> None:
    embed_run = new_run(FakeWire(up=fake(REFUSED)), alias(route()), len(texts))
    check(settle(embed_run, texts), texts, guilty_in(texts, "upstream_rejected"))


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("position", range(32))
def test_one_refused_input_in_every_position(status: int, position: int) -> None:
    texts = ["poison" if i == position else f"text {i}" for i in range(32)]
    rule = {"when": {"contains": "poison"}, "do": {"status": status, "message": "No."}}
    embed_run = new_run(FakeWire(up=fake(rule)), alias(route()), 32)
    check(
        run(embed_texts(embed_run, texts)),
        texts,
        {position: "input_too_long" if status == 413 else "upstream_rejected"},
    )
    # The whole, one call of ours, and halves of halves; where it may be the size, both of them.
    assert len(embed_run.calls) <= (24 if status == 413 else 14)


async def beside_traffic(embed_run: EmbedRun, work: Coroutine[Any, Any, None]) -> None:
    """Do it while others use the same routes."""

    async def others() -> None:
        while True:
            beside = dataclasses.replace(
                embed_run, on_outcome=OutcomeCollector(1, WIDTH), calls=[], stop=CancellationToken()
            )
            try:
                await embed_texts(beside, ["beside"])
            except EmbedmillError:
                pass
            await asyncio.sleep(0.02)

    traffic = asyncio.create_task(others())
    try:
        await work
    finally:
        traffic.cancel()


@pytest.mark.parametrize(("rule", "code"), [(FAILED, "upstream_rejected"), (SPOILED, "invalid_upstream_response")])
@settings(max_examples=8, deadline=None)
@given(texts=batches(most=40))
def test_inputs_that_a_healthy_route_fails_on_are_found_too(rule: dict[str, Any], code: str, texts: list[str]) -> None:
    embed_run = new_run(FakeWire(up=fake(rule)), alias(route()), len(texts))
    check(settle(embed_run, texts, beside=True), texts, guilty_in(texts, code))


@pytest.mark.parametrize("routes", [2, 3])
@pytest.mark.parametrize("position", [0, 1, 63, 64, 100, 127])
def test_to_search_on_one_route_is_enough(routes: int, position: int) -> None:
    """Each is tried with the whole at first and with the guilty one alone, and one with what is between."""
    random.seed(position)
    texts = ["poison" if i == position else f"text {i}" for i in range(128)]
    hosts = {f"up{number}": fake(FAILED) for number in range(routes)}
    embed_run = new_run(FakeWire(**hosts), alias(*(route(host) for host in hosts)), 128)
    check(run(embed_texts(embed_run, texts)), texts, {position: "upstream_rejected"})
    # Twice the whole on each, about 8 groups, 8 of what is left, and 17 trials alone on each with a control between.
    assert len(embed_run.calls) <= 2 * routes + 20 + 17 * (routes + 1)


@pytest.mark.parametrize("count", [2, 3, 10, 128])
@pytest.mark.parametrize("position", [0, 1, -1])
def test_one_such_input_needs_no_traffic_beside_it(count: int, position: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    texts[position] = "poison"
    embed_run = new_run(FakeWire(up=fake(FAILED)), alias(route()), count)
    check(run(embed_texts(embed_run, texts)), texts, {position % count: "upstream_rejected"})
    assert len(embed_run.calls) <= 3 + 20 + 2 * 17


@pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 503}, {"reply": "html"}, {"reply": "short"}])
@pytest.mark.parametrize("lane", ["bulk", "interactive"])
def test_an_outage_is_not_searched(trouble: dict[str, object], lane: str) -> None:
    texts = [f"text {i}" for i in range(300)]
    wire = FakeWire(up=fake({"do": trouble}))
    embed_run = new_run(wire, alias(route()), 300, lane=lane)
    with pytest.raises((UpstreamUnavailable, UpstreamProtocolError)):
        run(embed_texts(embed_run, texts))
    bodies = [orjson.loads(request.body) for request in wire.sent]
    sizes = [len(body["input"]) for body in bodies if "encoding_format" in body]
    assert len(bodies) - len(sizes) == ("status" in trouble)  # one that asks for floats, since nothing has worked yet
    # Twice the whole, and twice a text of ours; a page of HTML is no answer of a model, and needs no second look.
    assert sizes == ([300] if trouble == {"reply": "html"} else [300, 300, 1, 1])
    assert embed_run.router.outages.active  # found out, whichever lane it was
    assert isinstance(embed_run.on_outcome, OutcomeCollector) and embed_run.on_outcome.outcomes == []


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
    embed_run = new_run(wire, alias(route()), 200)
    try:
        run(embed_texts(embed_run, texts, limits=Limits(inputs_per_call=per_call), concurrency=8))
    except (UpstreamUnavailable, RouteDown):
        pass
    assert isinstance(embed_run.on_outcome, OutcomeCollector)
    assert all(isinstance(each, bytes) for each in outcomes(embed_run.on_outcome, 200, whole=False).values())
    assert len(wire.sent) <= good_calls + 8 * 16


def test_another_route_of_the_space_takes_what_one_fails_on() -> None:
    texts = ["poison" if i == 5 else f"text {i}" for i in range(32)]
    wire = FakeWire(first=fake(FAILED), second=fake())
    embed_run = new_run(wire, alias(route("first"), route("second", priority=1)), 32)
    check(run(embed_texts(embed_run, texts)), texts, {})
    assert wire.hosts_called[-1] == "second" and len(embed_run.calls) <= 6
