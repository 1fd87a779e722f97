"""What 429s teach about a provider's real quota."""

from __future__ import annotations

import math

import pytest

from engine.limiter.bucket import AcquireRequest, BucketState, CallResult, CallSignal, Verdict
from engine.limiter.learned_quota import (
    MIN_SHARE,
    AcceptedUsage,
    LearnedShare,
    after_refusal,
    lowered_share,
    recovered_share,
)
from engine.limiter.quota import request_bucket, token_bucket
from providers.fake.rate_limit import RateLimit, SlidingWindow
from tests.unit.rate_limit_simulation import LIMIT, START, Simulation, acquire_request, bucket_state


def test_a_quota_that_recovers_is_used_again() -> None:
    window = SlidingWindow(RateLimit(tokens_per_minute=LIMIT // 2))
    simulated = Simulation(bucket_state(), window, 1, tells_wait=True)
    simulated.run(180, [6000], callers=16, interactive_every_s=0.5)
    assert simulated.bucket.shares(START + 180)[0] <= 0.55
    window.max_tokens = LIMIT
    simulated.used = 0
    simulated.run(1200, [6000], callers=16, interactive_every_s=0.5, began=START + 180)
    assert simulated.bucket.shares(START + 1380) == (1.0, 1.0)
    assert simulated.used / (LIMIT * 20) >= 0.7


def test_429s_of_the_same_moment_lower_the_share_once() -> None:
    limiter = bucket_state(LIMIT, None)
    limiter.accepted.add(LIMIT / 2, 0, START)
    slots = [f"{number}" for number in range(8)]
    for slot in slots:
        assert limiter.acquire(acquire_request(slot), START).verdict is Verdict.ALLOW
    for number, slot in enumerate(slots):
        limiter.settle(CallResult(slot, CallSignal.RATE_LIMITED, tokens=-1.0, cooldown_s=1.0), START + number / 10)
    assert limiter.learned[0].share == pytest.approx(0.5, abs=1e-4)


def test_a_probe_that_is_refused_tells_nothing_of_the_quota() -> None:
    limiter = bucket_state(LIMIT, None)
    limiter.accepted.add(LIMIT / 2, 0, START)
    now = START
    for number in range(4):
        assert limiter.acquire(acquire_request(f"{number}"), now).verdict is Verdict.ALLOW
        limiter.settle(CallResult(f"{number}", CallSignal.RATE_LIMITED, tokens=-1.0), now)
        now = limiter.cooldown_until
    assert limiter.learned[0].share == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(("cooldown_s", "share"), [(None, 0.25), (60.0, 0.25), (120.0, 1.0)])
def test_who_says_to_come_back_much_later_speaks_of_no_minute(cooldown_s: float | None, share: float) -> None:
    limiter = bucket_state()
    limiter.acquire(acquire_request("a"), START)
    limiter.settle(CallResult("a", CallSignal.RATE_LIMITED, tokens=-1.0, cooldown_s=cooldown_s), START)
    assert min(limiter.shares(START)) == share


def test_the_share_falls_to_what_was_accepted_and_rises_slowly() -> None:
    assert lowered_share(1.0, 0.5, 1e9) == 0.5
    assert lowered_share(1.0, 0.99, 1e9) == pytest.approx(0.98)  # a call that was late
    assert lowered_share(0.5, 0.5, 10.0) == pytest.approx(0.45)  # twice in a moment
    assert lowered_share(1.0, 0.1, 1e9) == 0.25
    assert lowered_share(MIN_SHARE, 0.0, 1e9) == MIN_SHARE
    assert recovered_share(0.5, 120.0) == 0.5 and recovered_share(0.5, 180.0) == pytest.approx(0.55)
    assert recovered_share(0.5, 3600.0) == 1.0


def test_the_quota_that_a_429_names_falls_and_else_the_fuller_one() -> None:
    whole = (LearnedShare(), LearnedShare())

    def shares(kind: str, learned: tuple[LearnedShare, LearnedShare] = whole, now: float = START) -> list[float]:
        return [each.share for each in after_refusal(learned, (0.5, 0.4), kind, now)]

    assert shares("tokens") == [0.5, 1.0] and shares("requests") == [1.0, 0.4] and shares("") == [0.5, 1.0]
    first = after_refusal(whole, (0.5, 0.4), "", START)
    assert shares("", first, START + 10) == pytest.approx([0.45, 0.5])  # it has not helped
    assert shares("", first, START + 90) == [pytest.approx(0.49), 1.0]
    # A quota that is not stated is not learned.
    assert after_refusal(whole, (0.5, None), "requests", START) == (LearnedShare(0.5, START), LearnedShare())
    assert after_refusal(whole, (None, None), "tokens", START) == whole


def test_a_minute_is_counted_in_buckets() -> None:
    accepted = AcceptedUsage()
    for second in range(120):
        accepted.add(10.0, 1.0, START + second)
    tokens, requests = accepted.of_last_minute(START + 119.999)
    assert tokens == pytest.approx(600, rel=0.02) and requests == pytest.approx(60, rel=0.02)
    assert accepted.of_last_minute(START + 300) == (0.0, 0.0)
    accepted.assume(10.0, 1.0, START + 302.5)
    assert accepted.of_last_minute(START + 302.5) == pytest.approx((600.0, 60.0), rel=0.01)


@pytest.mark.parametrize("requests", [3, 30, 600])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_no_minute_holds_more_than_the_share(requests: int, share: float) -> None:
    limiter = BucketState(64, 90.0, token_bucket(LIMIT), request_bucket(requests), updated_at=START)
    limiter.learned = (LearnedShare(), LearnedShare(share, START + 1e6))  # does not rise
    now, started = START, []
    while now < START + 300:
        answer = limiter.acquire(AcquireRequest(f"{now}", True, 1.0, 0.0), now)
        limiter.slots.clear()
        if answer.verdict is Verdict.ALLOW:
            started.append(now)
        now += max(0.001, answer.wait_s + 0.001)
    max_concurrency = max(sum(at <= each < at + 60 for each in started) for at in started)
    assert max_concurrency <= math.ceil(requests * share - 1e-9)
