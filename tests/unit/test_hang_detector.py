"""Calls that hang are found out beside those that are answered, and a provider that only is slow is left alone."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest

from engine.cancellation import CancellationToken
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import EmbedRun, embed
from engine.embedding.hang_detector import PROBE_TIMEOUT_S
from engine.limiter.call_waits import CallWaits
from engine.limiter.learned_timeout import CALLS_TO_KNOW, FLOOR_S, LATE_FLOOR_S, LearnedTimeout
from engine.planning.packing import pack
from models.embedding import Limits, Options
from models.errors import EmbedmillError, UpstreamError
from tests.fakes import WIDTH, FakeWire, alias, embed_texts, fake, new_run, route, run, time_passes

ONE_EACH = Limits(inputs_per_call=1)
HANGS: dict[str, Any] = {"do": {"fault": "hang"}}


def texts(count: int, tag: str = "t") -> list[str]:
    return [f"{tag}{number}" for number in range(count)]


def anew(embed_run: EmbedRun, count: int) -> EmbedRun:
    """Another run in the same process."""
    return dataclasses.replace(
        embed_run,
        stop=CancellationToken(),
        calls=[],
        on_outcome=OutcomeCollector(count, WIDTH),
        deadline=time.monotonic() + 10_000.0,
    )


async def warm(wire: FakeWire, **options: Any) -> EmbedRun:
    """A run on a route of which it is known how long its calls take."""
    embed_run = new_run(wire, alias(route()), CALLS_TO_KNOW, seconds=10_000.0)
    await embed_texts(embed_run, texts(CALLS_TO_KNOW), limits=ONE_EACH, **options)
    return embed_run


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_route_whose_calls_all_hang_is_down_before_one_has_timed_out() -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake())
        embed_run = anew(await warm(wire), 40)
        wire.hosts["up"] = fake(HANGS)
        before, began = len(wire.sent), now()
        with pytest.raises(UpstreamError):
            await embed_texts(embed_run, texts(40), limits=ONE_EACH, concurrency=16)
        assert embed_run.router.outages.active and now() - began <= LATE_FLOOR_S + PROBE_TIMEOUT_S + 0.6 < FLOOR_S + 0.2
        # Sixteen calls hung, none was made again, and each may have been billed.
        assert len(wire.sent) - before == 16 + 1 and sum(call.ambiguous for call in embed_run.calls) == 16 + 1

    run(tried())


@pytest.mark.parametrize("ends_after_s", [1.0, 4.5, 7.0, 12.0, 20.0, 30.0, 45.0, 60.0, 80.0, 100.0])
def test_work_goes_on_within_seconds_of_the_end_of_a_hang(ends_after_s: float) -> None:
    async def tried() -> float:
        wire = FakeWire(up=fake())
        embed_run = await warm(wire)
        wire.hosts["up"] = fake(HANGS)
        ends_at = now() + ends_after_s
        asyncio.get_running_loop().call_at(ends_at, lambda: wire.hosts.update(up=fake()))
        while True:
            try:
                await embed_texts(anew(embed_run, 40), texts(40), limits=ONE_EACH, concurrency=16)
            except EmbedmillError:
                await time_passes(0.5)
                continue
            return now() - ends_at

    assert run(tried()) <= 15.0


@pytest.mark.parametrize("ends_after_s", [4.5, 12.0, 30.0, 80.0])
def test_calls_that_hang_in_all_places_keep_nobody_from_asking_the_route(ends_after_s: float) -> None:
    async def tried() -> float:
        wire = FakeWire(up=fake())
        small = route()
        small = dataclasses.replace(small, account=dataclasses.replace(small.account, max_concurrency=8))
        embed_run = new_run(wire, alias(small), CALLS_TO_KNOW, seconds=10_000.0)
        await embed_texts(embed_run, texts(CALLS_TO_KNOW), limits=ONE_EACH)
        wire.hosts["up"] = fake(HANGS)
        ends_at = now() + ends_after_s
        asyncio.get_running_loop().call_at(ends_at, lambda: wire.hosts.update(up=fake()))
        while True:
            try:
                await embed_texts(anew(embed_run, 40), texts(40), limits=ONE_EACH, concurrency=16)
            except EmbedmillError:
                await time_passes(0.5)
                continue
            assert wire.most_in_flight <= 8 + 1
            return now() - ends_at

    assert run(tried()) <= 15.0


def test_a_call_that_hangs_alone_ends_when_another_is_answered() -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake())
        embed_run = anew(await warm(wire), 32)
        wire.hosts["up"] = fake({"when": {"contains": "t31"}, "times": 1, "do": {"fault": "hang"}})
        before, began = len(wire.sent), now()
        await embed_texts(embed_run, texts(32), limits=ONE_EACH, concurrency=16)
        assert (
            LATE_FLOOR_S <= now() - began <= LATE_FLOOR_S + 2.0
        )  # the clock that skips also runs while the test works
        assert len(wire.sent) - before == 32 + 2 and sum(call.ambiguous for call in embed_run.calls) == 1
        assert not embed_run.router.outages.active

    run(tried())


def test_a_provider_that_has_become_slow_is_not_taken_for_one_that_hangs() -> None:
    """Its small calls are as quick as before."""

    async def tried() -> None:
        wire = FakeWire(up=fake({"do": {"latency_ms": 200}}))
        embed_run = anew(await warm(wire), 64)
        wire.hosts["up"] = fake({"when": {"contains": "slow"}, "do": {"latency_ms": 6_000}})
        before = len(wire.sent)
        await embed_texts(embed_run, texts(64, "slow"), limits=ONE_EACH, concurrency=16)
        assert not any(call.ambiguous for call in embed_run.calls) and not embed_run.router.outages.active
        assert len(wire.sent) - before <= 64 + 8

    run(tried())


def test_large_calls_and_cold_servers_are_left_alone() -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake({"do": {"latency_ms": 100}}))
        embed_run = anew(await warm(wire), 2_000)
        timeout = embed_run.router.state_of(embed_run.alias.routes[0]).limiter.learned_timeout
        for _ in range(200):  # time that is skipped is not learned
            timeout.record_success(0.1, 3)
        wire.hosts["up"] = fake({"do": {"latency_ms": 7_000}})  # a hundred times the tokens, seventy times as long
        await embed_texts(embed_run, texts(2_000), limits=Limits(inputs_per_call=200), concurrency=2)
        assert not any(call.ambiguous for call in embed_run.calls) and not embed_run.router.outages.active
        cold = FakeWire(up=fake({"do": {"latency_ms": 45_000}}))
        first = new_run(cold, alias(route()), 8, seconds=10_000.0)
        await embed_texts(first, texts(8), limits=ONE_EACH, concurrency=8)
        assert all(call.success for call in first.calls if call.inputs == 1 and not call.ambiguous)
        assert len(first.on_outcome.outcomes) == 8 and not first.router.outages.active  # type: ignore[attr-defined]

    run(tried())


def test_calls_of_a_fresh_process_that_hung_with_the_route_end_soon_after_it_answers_others() -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake(HANGS))
        embed_run = new_run(wire, alias(route()), 4, seconds=10_000.0)
        ends_at = now() + 20.0
        asyncio.get_running_loop().call_at(ends_at, lambda: wire.hosts.update(up=fake()))
        await embed(embed_run, pack(texts(4), range(4), ONE_EACH, WIDTH, Options()), concurrency=4)
        assert now() - ends_at <= 15.0
        assert embed_run.router.outages.of(embed_run.alias.routes[0]) is None

    run(tried())


@pytest.mark.parametrize("ends_after_s", [16.0, 18.0, 20.0, 21.0, 22.0, 23.0, 24.0, 26.0])
@pytest.mark.parametrize("apart_s", [0.06, 0.2, 1.0])
def test_calls_that_hung_are_given_up_together_though_they_were_sent_apart(apart_s: float, ends_after_s: float) -> None:
    """One that is made again and answered tells nothing of those that still hang: none waits for the one before it."""

    async def tried() -> None:
        wire = FakeWire(up=fake(HANGS))
        first = new_run(wire, alias(route()), 1, seconds=10_000.0)
        ends_at = now() + ends_after_s
        asyncio.get_running_loop().call_at(ends_at, lambda: wire.hosts.update(up=fake()))
        running = []
        for number in range(4):
            batches = pack(texts(1, f"run {number}"), range(1), ONE_EACH, WIDTH, Options())
            run_of_one = dataclasses.replace(anew(first, 1), waits=CallWaits())
            running.append(asyncio.create_task(embed(run_of_one, batches, concurrency=1)))
            await time_passes(apart_s)
        await asyncio.gather(*running)
        assert now() - ends_at <= 15.0

    run(tried())


def test_a_run_whose_calls_all_hang_says_since_when() -> None:
    async def tried() -> None:
        wire = FakeWire(up=fake())
        embed_run = anew(await warm(wire), 8)
        wire.hosts["up"] = fake(HANGS)
        running = asyncio.create_task(embed_texts(embed_run, texts(8), limits=ONE_EACH, concurrency=8))
        await time_passes(2.0)
        assert embed_run.waits.late_call() is None
        await time_passes(2.5)
        late = embed_run.waits.late_call()
        assert late is not None and late.route.provider == "up" and 4.0 <= late.age_s <= 5.0
        await asyncio.wait({running})
        assert running.exception() is not None and embed_run.waits.late_call() is None

    run(tried())


def test_a_small_answer_says_nothing_of_a_large_call_that_timed_out() -> None:
    timeout = LearnedTimeout()
    for _ in range(CALLS_TO_KNOW):
        timeout.record_success(0.1, 1_000)
    assert timeout.late_s(1_000) == LATE_FLOOR_S
    for _ in range(4):
        timeout.record_timeout(1_000)
    timeout.record_success(0.1, 3)
    assert timeout.slack == 4.0
    timeout.record_success(0.1, 800)
    assert timeout.slack == 1.0
