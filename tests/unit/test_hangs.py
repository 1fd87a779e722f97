"""A call that hangs costs one place for a little while, not the run; and what a job waits for is told as it is."""

from __future__ import annotations

import asyncio

import pytest

from engine.embedding.hang_detector import PROBE_EVERY_S
from engine.limiter.call_waits import CONCURRENCY, QUOTA, CallWaits
from engine.limiter.learned_timeout import CALLS_TO_GUESS, CALLS_TO_KNOW, FLOOR_S, GUESS_FLOOR_S, LearnedTimeout
from models.embedding import Limits
from tests.fakes import FakeWire, alias, embed_texts, fake, new_run, route, run

HANGS = {"when": {"probability": 0.03}, "do": {"fault": "hang"}}


@pytest.mark.parametrize("seed", range(3))
def test_twenty_thousand_inputs_with_three_hanging_calls_in_a_hundred_do_not_stand_still(seed: int) -> None:
    upstream = fake(HANGS, {"do": {"latency_ms": 500}})
    upstream.script.seed = seed
    wire = FakeWire(up=upstream)
    embed_run = new_run(wire, alias(route()), 20_000, seconds=10_000.0)

    async def timed() -> float:
        began = asyncio.get_running_loop().time()
        texts = [str(number) for number in range(20_000)]
        await embed_texts(embed_run, texts, limits=Limits(inputs_per_call=32), concurrency=16)
        return asyncio.get_running_loop().time() - began

    seconds = run(timed())
    hung = sum(call.ambiguous for call in embed_run.calls)
    # 625 calls of half a second on 16 places take 20 s. Some 19 hang: 8 s each now, where it was a minute each.
    assert hung >= 8 and seconds <= 20 + 6 * FLOOR_S, (hung, seconds)  # 38 hang with seed 2: 61 s
    # Each call that is given up may be billed: it is sent again once, not in a storm.
    ours = sum(call.error == "control_call" for call in embed_run.calls)  # beside those that hang, 5 s apart
    assert 625 + hung <= len(wire.sent) - ours <= 625 + hung + 2 and ours <= 1 + seconds / PROBE_EVERY_S
    print(f"{seconds:.1f} s, {hung} hung, {ours} calls of ours")


def test_a_first_shard_of_few_calls_does_not_wait_a_minute_for_one_that_hangs() -> None:
    wire = FakeWire(up=fake({"when": {"call": 2}, "do": {"fault": "hang"}}))
    embed_run = new_run(wire, alias(route()), 8, seconds=10_000.0)

    async def timed() -> float:
        began = asyncio.get_running_loop().time()
        await embed_texts(
            embed_run, [str(number) for number in range(8)], limits=Limits(inputs_per_call=1), concurrency=8
        )
        return asyncio.get_running_loop().time() - began

    assert run(timed()) <= GUESS_FLOOR_S + FLOOR_S
    assert len(wire.sent) - sum(call.error == "control_call" for call in embed_run.calls) == 9


def test_a_limit_is_a_multiple_of_what_is_usual_within_bounds() -> None:
    timeout = LearnedTimeout()
    for _ in range(CALLS_TO_GUESS - 1):
        timeout.record_success(10.0, 100)
    assert timeout.timeout_s(100) > 3600  # too little is known
    for _ in range(CALLS_TO_GUESS, CALLS_TO_KNOW):
        timeout.record_success(10.0, 100)
        assert timeout.timeout_s(100) == 100.0 and not timeout.is_known
    timeout.record_success(10.0, 100)
    assert timeout.timeout_s(100) == 40.0
    assert timeout.timeout_s(1_000) == 400.0  # a call of ten times the size may take ten times as long
    fast = LearnedTimeout()
    for _ in range(CALLS_TO_KNOW):
        fast.record_success(0.1, 100)
    assert fast.timeout_s(100) == FLOOR_S == 8.0


def test_a_provider_that_has_become_slow_is_given_more_time_until_it_answers() -> None:
    timeout = LearnedTimeout()
    for _ in range(CALLS_TO_KNOW):
        timeout.record_success(0.1, 1)
    for _ in range(6):
        timeout.record_timeout()
    assert timeout.timeout_s(1) == 64.0
    timeout.record_success(30.0, 1)
    for _ in range(10):
        timeout.record_success(30.0, 1)
    assert timeout.timeout_s(1) == 120.0


def test_what_a_call_waits_for_is_told_also_of_those_behind_it() -> None:
    waits = CallWaits()
    waits.begin("behind")
    waits.waiting("first", 5.0, reason=CONCURRENCY)
    assert waits.reason == CONCURRENCY and waits.blocked_for_s() is None  # not for long yet
    waits._began = dict.fromkeys(waits._began, 0.0)
    waits.end("first", may_start=True)
    waits.waiting("second", 3.0)
    assert waits.reason == QUOTA and waits.blocked_for_s() is not None
