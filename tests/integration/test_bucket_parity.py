"""The rules of the token bucket are in Lua and in Python: both say the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import redis.asyncio

from engine.limiter import lua, quota
from engine.limiter.bucket import AcquireRequest, BucketState, CallResult, CallSignal, Verdict

START = 1_700_000_000.0


def shares_in(reply: Sequence[str]) -> tuple[float, ...]:
    return tuple(map(float, reply)) or (1.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
async def test_redis_says_what_the_book_says(pacing_redis: redis.asyncio.Redis, seed: int) -> None:
    """The same asks and ends, at the same instants, by the rules in Lua and by those in Python."""
    rng = random.Random(seed)
    params = (quota.token_bucket(rng.choice([None, 60_000])), quota.request_bucket(rng.choice([None, 30])))
    bucket = BucketState(6, 20.0, *params, updated_at=START)
    keys = lua.keys_of(f"parity|{seed}")
    ask_script, end_script = pacing_redis.register_script(lua.ACQUIRE), pacing_redis.register_script(lua.SETTLE)
    now, lowest = START, 1.0
    under_way: list[str] = []
    for turn in range(180):  # in less time than a share takes to rise
        now += rng.choice([0.0, 0.011, 0.303, 2.007])
        if under_way and rng.random() < 0.45:
            slot = under_way.pop(rng.randrange(len(under_way)))
            signal = rng.choice([*CallSignal, CallSignal.SUCCESS, CallSignal.SUCCESS, CallSignal.SUCCESS])
            cooldown_s = rng.choice([None, 0.001, 0.05, 0.5, 3.0])
            change = rng.choice([0.0, -400.0, 200.0])
            end = CallResult(slot, signal, change, rng.choice([0.0, -1.0]), cooldown_s, rng.random())
            end = replace(
                end, quota_kind=rng.choice(["", "tokens", "requests"]), is_quota_nearly_spent=rng.random() < 0.05
            )
            if signal not in (CallSignal.RATE_LIMITED, CallSignal.NONE):
                end = replace(end, accepted_tokens=rng.choice([100.0, 900.0, 5000.0]))
            bucket.settle(end, now)
            reply = await end_script(keys[:2], lua.settle_arguments(end, max_concurrency=6, params=params, now=now))
            assert float(reply[0]) == pytest.approx(max(0.0, bucket.cooldown_until - now), abs=1e-4)
            assert float(reply[1]) == pytest.approx(bucket.concurrency_limit, abs=1e-3)
            assert shares_in(reply[2:]) == pytest.approx(bucket.shares(now), abs=1e-4)
            lowest = min(lowest, *shares_in(reply[2:]))
            continue
        size = rng.choice([100.0, 900.0, 5000.0])
        ask = AcquireRequest(f"s{turn}", rng.random() < 0.5, size, rng.choice([0.0, 1.0, 20.0]), rng.random() < 0.1)
        expected = bucket.acquire(ask, now)
        arguments = lua.acquire_arguments(ask, max_concurrency=6, slot_ttl_s=20.0, params=params, now=now)
        verdict, wait, _, tokens, requests, concurrency_limit, *shares = await ask_script(keys, arguments)
        assert verdict == expected.verdict.value and float(wait) == pytest.approx(expected.wait_s, abs=1e-3, rel=1e-3)
        assert float(tokens) == pytest.approx(bucket.token_debt, abs=0.1, rel=1e-3)
        assert float(requests) == pytest.approx(bucket.request_debt, abs=0.001, rel=1e-3)
        assert float(concurrency_limit) == pytest.approx(bucket.concurrency_limit, abs=1e-3)
        assert shares_in(shares) == pytest.approx(bucket.shares(now), abs=1e-4)
        if expected.verdict is Verdict.ALLOW:
            under_way.append(ask.slot)
    assert await pacing_redis.ttl(keys[0]) > 0
    assert (lowest < 0.9) == any(params.rate for params in params)
    for pause_s in (100.0, 50.0, 400.0, 2000.0):
        now += pause_s
        expected = bucket.acquire(last := AcquireRequest(f"p{pause_s}", True, 1.0, 0.0), now)
        arguments = lua.acquire_arguments(last, max_concurrency=6, slot_ttl_s=20.0, params=params, now=now)
        reply = await ask_script(keys, arguments)
        assert shares_in(reply[6:]) == pytest.approx(bucket.shares(now), abs=1e-4)
    assert reply[0] == expected.verdict.value and bucket.shares(now) == (1.0, 1.0)
