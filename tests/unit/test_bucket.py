"""The rules of pacing, on a simulated clock, against a provider that counts a strict sliding minute."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.limiter import quota
from engine.limiter.bucket import CallResult, CallSignal, Verdict
from providers.fake.rate_limit import RateLimit, SlidingWindow
from tests.unit.rate_limit_simulation import LIMIT, START, Simulation, acquire_request, bucket_state


def world(seed: int = 1, *, tokens: int | None = LIMIT, requests: int | None = None) -> Simulation:
    rate = RateLimit(requests_per_minute=requests, tokens_per_minute=tokens)
    return Simulation(bucket_state(tokens, requests), SlidingWindow(rate), seed)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, LIMIT * 9 // 10), min_size=1, max_size=6),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.5, 3.0]),
)
def test_no_sliding_minute_ever_holds_more_than_the_quota(sizes: list[int], seed: int, every_s: float) -> None:
    """Whatever the sizes of the calls, up to nine tenths of the quota at once (docs/decisions/0007-pacing.md)."""
    simulated = world(seed, requests=600)
    simulated.overstated = 1.0
    simulated.late_s = 0.1
    simulated.run(150, sizes, callers=3, interactive_every_s=every_s)
    assert simulated.refused == 0


@pytest.mark.parametrize("size", [600, 1700, 15_000])
def test_a_busy_quota_is_used_to_at_least_95_percent(size: int) -> None:
    simulated = world()
    simulated.run(180, [size], callers=16)
    assert simulated.refused == 0
    assert simulated.used / (LIMIT * 3) >= 0.95


@pytest.mark.parametrize("requests", [1, 3, 10, 60, 600])
def test_requests_are_used_to_at_least_95_percent_too(requests: int) -> None:
    simulated = world(tokens=None, requests=requests)
    minutes = 20 if requests < 100 else 3
    simulated.run(60.0 * minutes, [1], callers=8)
    assert simulated.refused == 0
    assert simulated.used / (requests * minutes) >= 0.95


def test_interactive_calls_find_a_reserve_whatever_bulk_does() -> None:
    simulated = world(requests=600)
    simulated.run(120, [int(LIMIT * quota.BULK_CALL / 1.5)], callers=16, interactive_every_s=0.5)
    assert simulated.refused == 0 and len(simulated.waited) > 200
    assert max(simulated.waited) < 0.05


def test_bulk_may_use_what_is_idle_and_leaves_what_is_not() -> None:
    crowded = world(requests=None)
    crowded.run(120, [5000], callers=16, interactive_every_s=0.06)  # interactive calls ask for half the quota
    assert crowded.refused == 0 and crowded.used / (LIMIT * 2) >= 0.95
    assert sorted(crowded.waited)[len(crowded.waited) * 99 // 100] < 0.05


def test_an_interactive_call_reserves_its_start_or_is_refused_with_the_true_wait() -> None:
    limiter = bucket_state(requests=None)
    rate = limiter.tokens.rate
    burst = limiter.tokens.burst
    assert limiter.acquire(acquire_request(tokens=burst), START).wait_s == 0
    later = limiter.acquire(acquire_request(tokens=rate, max_wait_s=1.5), START)
    assert later.verdict is Verdict.ALLOW and later.wait_s == pytest.approx(1.0)
    debt = limiter.token_debt
    refused = limiter.acquire(acquire_request(tokens=rate, max_wait_s=1.5), START)
    assert refused.verdict is Verdict.OVER_QUOTA and refused.wait_s == pytest.approx(2.0)
    assert limiter.token_debt == debt  # who is refused is not charged
    assert limiter.acquire(acquire_request(tokens=rate, max_wait_s=2.1), START).verdict is Verdict.ALLOW
    assert limiter.acquire(acquire_request(interactive=False), START).verdict is Verdict.OVER_QUOTA


def test_a_refund_and_a_debt_are_settled() -> None:
    limiter = bucket_state(requests=None)
    limiter.acquire(acquire_request(tokens=10_000), START)
    limiter.settle(CallResult("a", CallSignal.CLIENT_ERROR, tokens=-10_000, requests=-1), START)
    assert limiter.token_debt == 0
    limiter.acquire(acquire_request(tokens=10_000), START)
    limiter.settle(CallResult("a", CallSignal.SUCCESS, tokens=5_000), START)
    assert limiter.token_debt == 15_000
    limiter.settle(
        CallResult("b", CallSignal.SUCCESS, tokens=-LIMIT), START
    )  # a late refund of what has drained long since
    assert limiter.token_debt == -limiter.tokens.max_credit


def test_a_429_closes_the_gate_and_one_probe_opens_it() -> None:
    limiter = bucket_state()
    for slot in ("a", "b", "c"):
        assert limiter.acquire(acquire_request(slot), START).verdict is Verdict.ALLOW
    limiter.settle(CallResult("a", CallSignal.RATE_LIMITED, cooldown_s=10.0), START)
    limiter.settle(CallResult("b", CallSignal.RATE_LIMITED, cooldown_s=5.0), START + 1)  # does not open it sooner
    limiter.settle(CallResult("c", CallSignal.SUCCESS), START + 2)  # it had started before
    closed = limiter.acquire(acquire_request("d"), START + 3)
    assert closed.verdict is Verdict.COOLING_DOWN and closed.wait_s == pytest.approx(7.0)
    assert limiter.acquire(acquire_request("probe"), START + 10).verdict is Verdict.ALLOW
    assert limiter.acquire(acquire_request("d"), START + 10).verdict is Verdict.COOLING_DOWN
    limiter.settle(CallResult("probe", CallSignal.RATE_LIMITED, cooldown_s=10.0), START + 11)
    assert limiter.acquire(acquire_request("d"), START + 20).verdict is Verdict.COOLING_DOWN
    assert limiter.acquire(acquire_request("probe"), START + 21).verdict is Verdict.ALLOW
    limiter.settle(CallResult("probe", CallSignal.NONE), START + 21)  # cancelled: another may try
    assert limiter.acquire(acquire_request("again"), START + 21).verdict is Verdict.ALLOW
    limiter.settle(CallResult("again", CallSignal.CLIENT_ERROR), START + 22)
    assert all(limiter.acquire(acquire_request(slot), START + 22).verdict is Verdict.ALLOW for slot in "xyz")


def test_a_probe_whose_process_died_is_given_up_for_lost() -> None:
    limiter = bucket_state()
    limiter.settle(CallResult("a", CallSignal.RATE_LIMITED, cooldown_s=1.0), START)
    assert limiter.acquire(acquire_request("probe"), START + 1).verdict is Verdict.ALLOW
    assert limiter.acquire(acquire_request("d"), START + 90).verdict is Verdict.COOLING_DOWN
    assert limiter.acquire(acquire_request("d"), START + 91.1).verdict is Verdict.ALLOW


@pytest.mark.parametrize(
    ("told_s", "closed_s"),
    [
        (None, [1, 2, 4, 8, 16, 32, 60, 60]),
        (0.05, [0.05, 2, 4, 4, 4, 4, 4, 4]),  # believed once
        (10.0, [10] * 8),
    ],
)
def test_a_429_that_names_no_time_or_too_little_closes_the_gate_for_longer_in_the_end(
    told_s: float | None, closed_s: list[float]
) -> None:
    limiter, now, process_alive_s = bucket_state(), START, []
    for strike in range(8):
        assert limiter.acquire(acquire_request(f"{strike}"), now).verdict is Verdict.ALLOW
        limiter.settle(CallResult(f"{strike}", CallSignal.RATE_LIMITED, cooldown_s=told_s), now)
        process_alive_s.append(limiter.cooldown_until - now)
        now = limiter.cooldown_until
    assert process_alive_s == pytest.approx(closed_s)


def test_calls_that_had_started_before_the_gate_was_closed_do_not_make_it_longer() -> None:
    limiter = bucket_state()
    slots = [f"{number}" for number in range(12)]
    for slot in slots:
        assert limiter.acquire(acquire_request(slot), START).verdict is Verdict.ALLOW
    for number, slot in enumerate(slots):  # each is refused after the gate of the one before has opened
        limiter.settle(CallResult(slot, CallSignal.RATE_LIMITED, cooldown_s=0.05), START + number / 10)
    assert limiter.cooldown_until == pytest.approx(START + 1.15)


def test_places_shrink_with_trouble_once_a_second_and_grow_with_success() -> None:
    limiter = bucket_state(None, None, max_concurrency=20)
    for signal in (CallSignal.OVERLOADED, CallSignal.RATE_LIMITED, CallSignal.SLOW):
        limiter.settle(CallResult("x", signal, cooldown_s=0.0), START)
    assert limiter.concurrency_limit == pytest.approx(14.0)
    for second in range(1, 30):
        limiter.settle(CallResult("x", CallSignal.OVERLOADED), START + second)
    assert (limiter.concurrency_limit, limiter.lane_limit(interactive=False)) == (1.0, 1)
    limiter.is_tripped = False
    for turn in range(400):
        slots = [f"{turn}-{i}" for i in range(30)]
        started = [
            slot for slot in slots if limiter.acquire(acquire_request(slot), START + 60 + turn).verdict is Verdict.ALLOW
        ]
        assert len(started) == limiter.lane_limit(interactive=True)
        for slot in started:
            limiter.settle(CallResult(slot, CallSignal.SUCCESS), START + 60 + turn)
    assert limiter.concurrency_limit == 20.0


def test_bulk_leaves_places_and_lost_ones_come_back() -> None:
    limiter = bucket_state(None, None, max_concurrency=16)
    bulk = [limiter.acquire(acquire_request(f"b{i}", interactive=False), START).verdict for i in range(20)]
    assert bulk.count(Verdict.ALLOW) == 14
    assert [limiter.acquire(acquire_request(f"i{i}"), START).verdict for i in range(3)] == [
        Verdict.ALLOW,
        Verdict.ALLOW,
        Verdict.AT_CAPACITY,
    ]
    assert limiter.acquire(acquire_request("later"), START + 91).verdict is Verdict.ALLOW


def test_shares_of_all_processes_make_one_quota() -> None:
    whole = quota.token_bucket(LIMIT)
    share = whole.split_among(4)
    assert (share.rate * 4, share.burst * 4) == pytest.approx((whole.rate, whole.burst))
    assert whole.split_among(0) == whole


@pytest.mark.parametrize(
    ("tokens", "requests", "largest"),
    [(None, 600, None), (1_000_000, None, 15_000), (1_000_000, 600, 15_000), (1_000_000, 20, 55_000), (10, 3, 3)],
)
def test_a_call_is_small_against_the_quota(tokens: int | None, requests: int | None, largest: int | None) -> None:
    assert quota.max_call_tokens(tokens, requests) == largest
