"""Hedging: the first of two answers counts, the other call is cut off, and both are billed. Waiting is free here."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import numpy as np
import pytest

from engine.embedding import hedging
from engine.embedding.embed import BULK, INTERACTIVE, EmbedRun
from engine.ledger import usage_rows
from engine.limiter.max_wait import MaxWait
from engine.route_state.recent_calls import RecentCalls
from engine.route_state.state import RouteState
from engine.routing.hedge_budget import HedgeBudget
from engine.upstream.call import Embedded
from models.embedding import Alias, Batch, Call, Options, Route
from models.errors import UpstreamError, UpstreamUnavailable
from providers.fake import FakeUpstream, fake_vectors
from tests.fakes import MODEL, WIDTH, FakeWire, alias, embed_texts, fake, new_run, route, run
from tests.waiting import until

FIRST, SECOND = route("first"), route("second", priority=1)
WARM = 20


def hedged(**fields: Any) -> Alias:
    return dataclasses.replace(alias(FIRST, SECOND), **{"hedge": True, **fields})


async def warmed_up(wire: FakeWire, of: Alias, first: FakeUpstream, *, lane: str = INTERACTIVE) -> EmbedRun:
    """A run of which 20 calls have been answered at once; from now on the first upstream does as `first`."""
    embed_run = new_run(wire, of, 1, lane=lane)
    for _ in range(WARM):
        await embed_texts(embed_run, ["warm"])
    assert wire.hosts_called == ["first"] * WARM
    wire.hosts["first"] = first
    embed_run.calls.clear()
    wire.sent.clear()
    return embed_run


def seconds(number: float) -> FakeUpstream:
    return fake({"do": {"latency_ms": number * 1000}})


def embedded(wire: FakeWire, first: FakeUpstream, of: Alias | None = None, lane: str = INTERACTIVE) -> EmbedRun:
    """A run that has embedded one text, with the right vector."""

    async def work() -> EmbedRun:
        embed_run = await warmed_up(wire, of or hedged(), first, lane=lane)
        gathered = await embed_texts(embed_run, ["a text"])
        [vectors] = gathered.vectors_in_order()
        assert vectors.tobytes() == fake_vectors(["a text"], WIDTH, MODEL).tobytes()
        return embed_run

    return run(work())


def rows_of(embed_run: EmbedRun) -> list[tuple[str, str, str]]:
    rows = usage_rows.of_calls(embed_run.calls, project="p", key_id="k", lane="interactive", alias="a")
    assert all(row["cost_usd"] > 0 and row["usd_per_million_tokens"] for row in rows)
    return [(row["provider"], row["kind"], row["code"]) for row in rows]


def test_a_slow_call_is_answered_by_the_second_route_and_is_in_the_ledger() -> None:
    wire = FakeWire(first=fake(), second=fake())
    embed_run = embedded(wire, seconds(30))
    assert wire.hosts_called == ["first", "second"] and wire.cancelled == 1
    assert rows_of(embed_run) == [("first", "ambiguous", "cut_off")]
    assert [(call.provider, call.success) for call in embed_run.calls if call.success] == [("second", True)]


def test_the_first_route_may_still_answer_first() -> None:
    wire = FakeWire(first=fake(), second=seconds(30))
    embed_run = embedded(wire, seconds(5))
    assert wire.hosts_called == ["first", "second"] and wire.cancelled == 1
    assert rows_of(embed_run) == [("second", "ambiguous", "cut_off")]


@pytest.mark.parametrize(("fields", "lane"), [({"hedge": False}, INTERACTIVE), ({}, BULK)])
def test_other_calls_are_not_hedged(fields: dict[str, Any], lane: str) -> None:
    wire = FakeWire(first=fake(), second=fake())
    embedded(wire, seconds(1.5), hedged(**fields), lane)
    assert wire.hosts_called == ["first"]


def test_a_model_of_one_route_has_nothing_to_hedge_with() -> None:
    wire = FakeWire(first=fake())
    embedded(wire, seconds(5), dataclasses.replace(alias(FIRST), hedge=True))
    assert wire.hosts_called == ["first"]


def test_before_it_is_known_what_is_usual_nothing_is_hedged() -> None:
    wire = FakeWire(first=seconds(5), second=fake())
    run(embed_texts(new_run(wire, hedged(), 1, lane=INTERACTIVE), ["a"]))
    assert wire.hosts_called == ["first"]


def test_one_call_in_twenty_is_hedged_at_the_most() -> None:
    wire = FakeWire(first=fake(), second=fake())

    async def work() -> None:
        embed_run = await warmed_up(wire, hedged(), seconds(5))
        for _ in range(100):
            await embed_texts(embed_run, ["a"])

    run(work())
    assert wire.hosts_called.count("first") == 100
    assert wire.hosts_called.count("second") == 6  # of 120 calls


@pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 400}, {"fault": "close"}, {"status": 429}])
def test_a_second_route_that_fails_leaves_the_call_to_the_first(trouble: dict[str, Any]) -> None:
    wire = FakeWire(first=fake(), second=fake({"do": trouble}))
    embed_run = embedded(wire, seconds(5))
    assert [call.provider for call in embed_run.calls if call.success and not call.wasted] == ["first"]


def test_a_first_route_that_fails_after_all_is_answered_for_by_the_second() -> None:
    wire = FakeWire(first=fake(), second=seconds(20))
    embed_run = embedded(wire, fake({"do": {"latency_ms": 2000, "status": 401}}))
    assert [call.provider for call in embed_run.calls if call.success] == ["second"]
    assert wire.hosts_called.count("second") == 1


def test_a_caller_who_hangs_up_ends_both_calls() -> None:
    wire = FakeWire(first=fake(), second=seconds(30))

    async def work() -> EmbedRun:
        embed_run = await warmed_up(wire, hedged(), seconds(30))
        task = asyncio.create_task(embed_texts(embed_run, ["a"]))
        await until(lambda: wire.in_flight == 2)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() and wire.in_flight == 0
        return embed_run

    assert sorted(rows_of(run(work()))) == [("first", "ambiguous", "cut_off"), ("second", "ambiguous", "cut_off")]


def raced(*, first_fails: UpstreamError | None = None) -> tuple[EmbedRun, hedging.Raced]:
    """A race of two routes that end in the same moment, each with an answered call."""
    embed_run = new_run(FakeWire(), hedged(), 1, lane=INTERACTIVE)
    batch = Batch(["a"], [0], 7, WIDTH, Options())
    for _ in range(WARM):
        embed_run.router.state_of(FIRST).recent_calls.answered(time.monotonic(), 0.001)
        embed_run.router.hedge_budget_of(embed_run.alias).add_call()
    moment = asyncio.Event()

    async def try_route(of: Route, state: RouteState, max_wait: MaxWait, only_once: bool) -> hedging.Tried:
        if of == SECOND:
            asyncio.get_running_loop().call_later(1.0, moment.set)
        await moment.wait()
        if of == FIRST and first_fails is not None:
            return hedging.Tried(None, first_fails)
        embed_run.calls.append(Call(*of.key, True, 200, 1.0, 2.0, inputs=1))
        return hedging.Tried(Embedded(np.ones((1, WIDTH), np.float32), 9), None)

    return embed_run, run(hedging.race(embed_run, batch, [FIRST, SECOND], try_route))


def test_of_two_answers_of_one_moment_the_second_is_wasted_by_its_tokens() -> None:
    embed_run, result = raced()
    assert result.answer is not None and result.answer[1] == FIRST
    assert rows_of(embed_run) == [("second", "wasted", "hedge_lost")]
    [wasted] = [call for call in embed_run.calls if call.wasted]
    assert (wasted.tokens, wasted.tokens_estimated, wasted.cost_usd * 1_000_000) == (9, False, 9 * FIRST_PRICE)


FIRST_PRICE = FIRST.usd_per_million_tokens


def test_the_error_of_a_moment_does_not_hide_the_answer() -> None:
    embed_run, result = raced(first_fails=UpstreamUnavailable("away"))
    assert result.answer is not None and result.answer[1] == SECOND and rows_of(embed_run) == []


def test_a_budget_saves_ten_calls_and_no_more() -> None:
    budget = HedgeBudget()
    assert not budget.take()
    for _ in range(19):
        budget.add_call()
    assert not budget.take()
    budget.add_call()
    assert budget.take() and not budget.take()
    for _ in range(10_000):
        budget.add_call()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]


def test_what_is_usual_needs_twenty_calls_of_the_last_hour_and_knows_of_calls_that_were_given_up() -> None:
    calls = RecentCalls()
    for number in range(19):
        calls.answered(float(number), 1.0)
    assert calls.usual_latency_s(100.0, 0.95) is None
    calls.took_at_least(19.0, 50.0)
    assert (calls.usual_latency_s(100.0, 0.95), calls.usual_latency_s(100.0, 1.0)) == (1.0, 50.0)
    assert calls.success_rate(100.0, 3600.0) == 1.0
    assert calls.usual_latency_s(3601.0, 0.95) is None
