"""The rules of pacing, on a simulated clock, against a provider that counts a strict sliding minute."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.limiter import quota
from engine.limiter.bucket import CallResult, CallSignal, Verdict
from providers.fake_quota import RateLimit, SlidingWindow
from tests.unit.pacing_world import LIMIT, START, World, ask, book


def world(seed: int = 1, *, tokens: int | None = LIMIT, requests: int | None = None) -> World:
    rate = RateLimit(requests_per_minute=requests, tokens_per_minute=tokens)
    return World(book(tokens, requests), SlidingWindow(rate), seed)


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
    paced = book(requests=None)
    rate = paced.tokens.rate
    burst = paced.tokens.burst
    assert paced.ask(ask(tokens=burst), START).wait_s == 0
    later = paced.ask(ask(tokens=rate, patience_s=1.5), START)
    assert later.verdict is Verdict.GO and later.wait_s == pytest.approx(1.0)
    debt = paced.token_debt
    refused = paced.ask(ask(tokens=rate, patience_s=1.5), START)
    assert refused.verdict is Verdict.QUOTA and refused.wait_s == pytest.approx(2.0)
    assert paced.token_debt == debt  # who is refused is not charged
    assert paced.ask(ask(tokens=rate, patience_s=2.1), START).verdict is Verdict.GO
    assert paced.ask(ask(interactive=False), START).verdict is Verdict.QUOTA


def test_a_refund_and_a_debt_are_settled() -> None:
    paced = book(requests=None)
    paced.ask(ask(tokens=10_000), START)
    paced.end(CallResult("a", CallSignal.ANSWERED, tokens=-10_000, requests=-1), START)
    assert paced.token_debt == 0
    paced.ask(ask(tokens=10_000), START)
    paced.end(CallResult("a", CallSignal.WELL, tokens=5_000), START)
    assert paced.token_debt == 15_000
    paced.end(CallResult("b", CallSignal.WELL, tokens=-LIMIT), START)  # a late refund of what has drained long since
    assert paced.token_debt == -paced.tokens.credit


def test_a_429_closes_the_gate_and_one_probe_opens_it() -> None:
    paced = book()
    for slot in ("a", "b", "c"):
        assert paced.ask(ask(slot), START).verdict is Verdict.GO
    paced.end(CallResult("a", CallSignal.LIMITED, gate_s=10.0), START)
    paced.end(CallResult("b", CallSignal.LIMITED, gate_s=5.0), START + 1)  # does not open it sooner
    paced.end(CallResult("c", CallSignal.WELL), START + 2)  # it had started before
    closed = paced.ask(ask("d"), START + 3)
    assert closed.verdict is Verdict.GATE and closed.wait_s == pytest.approx(7.0)
    assert paced.ask(ask("probe"), START + 10).verdict is Verdict.GO
    assert paced.ask(ask("d"), START + 10).verdict is Verdict.GATE
    paced.end(CallResult("probe", CallSignal.LIMITED, gate_s=10.0), START + 11)
    assert paced.ask(ask("d"), START + 20).verdict is Verdict.GATE
    assert paced.ask(ask("probe"), START + 21).verdict is Verdict.GO
    paced.end(CallResult("probe", CallSignal.NOTHING), START + 21)  # cancelled: another may try
    assert paced.ask(ask("again"), START + 21).verdict is Verdict.GO
    paced.end(CallResult("again", CallSignal.ANSWERED), START + 22)
    assert all(paced.ask(ask(slot), START + 22).verdict is Verdict.GO for slot in "xyz")


def test_a_probe_whose_process_died_is_given_up_for_lost() -> None:
    paced = book()
    paced.end(CallResult("a", CallSignal.LIMITED, gate_s=1.0), START)
    assert paced.ask(ask("probe"), START + 1).verdict is Verdict.GO
    assert paced.ask(ask("d"), START + 90).verdict is Verdict.GATE
    assert paced.ask(ask("d"), START + 91.1).verdict is Verdict.GO


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
    paced, now, seen_s = book(), START, []
    for strike in range(8):
        assert paced.ask(ask(f"{strike}"), now).verdict is Verdict.GO
        paced.end(CallResult(f"{strike}", CallSignal.LIMITED, gate_s=told_s), now)
        seen_s.append(paced.gate_until - now)
        now = paced.gate_until
    assert seen_s == pytest.approx(closed_s)


def test_calls_that_had_started_before_the_gate_was_closed_do_not_make_it_longer() -> None:
    paced = book()
    slots = [f"{number}" for number in range(12)]
    for slot in slots:
        assert paced.ask(ask(slot), START).verdict is Verdict.GO
    for number, slot in enumerate(slots):  # each is refused after the gate of the one before has opened
        paced.end(CallResult(slot, CallSignal.LIMITED, gate_s=0.05), START + number / 10)
    assert paced.gate_until == pytest.approx(START + 1.15)


def test_places_shrink_with_trouble_once_a_second_and_grow_with_success() -> None:
    paced = book(None, None, most=20)
    for lesson in (CallSignal.STRAINED, CallSignal.LIMITED, CallSignal.SLOW):
        paced.end(CallResult("x", lesson, gate_s=0.0), START)
    assert paced.places == pytest.approx(14.0)
    for second in range(1, 30):
        paced.end(CallResult("x", CallSignal.STRAINED), START + second)
    assert (paced.places, paced.room(interactive=False)) == (1.0, 1)
    paced.shut = False
    for turn in range(400):
        slots = [f"{turn}-{i}" for i in range(30)]
        started = [slot for slot in slots if paced.ask(ask(slot), START + 60 + turn).verdict is Verdict.GO]
        assert len(started) == paced.room(interactive=True)
        for slot in started:
            paced.end(CallResult(slot, CallSignal.WELL), START + 60 + turn)
    assert paced.places == 20.0


def test_bulk_leaves_places_and_lost_ones_come_back() -> None:
    paced = book(None, None, most=16)
    bulk = [paced.ask(ask(f"b{i}", interactive=False), START).verdict for i in range(20)]
    assert bulk.count(Verdict.GO) == 14
    assert [paced.ask(ask(f"i{i}"), START).verdict for i in range(3)] == [Verdict.GO, Verdict.GO, Verdict.BUSY]
    assert paced.ask(ask("later"), START + 91).verdict is Verdict.GO


def test_shares_of_all_processes_make_one_quota() -> None:
    whole = quota.of_tokens(LIMIT)
    share = whole.shared_by(4)
    assert (share.rate * 4, share.burst * 4) == pytest.approx((whole.rate, whole.burst))
    assert whole.shared_by(0) == whole


@pytest.mark.parametrize(
    ("tokens", "requests", "largest"),
    [(None, 600, None), (1_000_000, None, 15_000), (1_000_000, 600, 15_000), (1_000_000, 20, 55_000), (10, 3, 3)],
)
def test_a_call_is_small_against_the_quota(tokens: int | None, requests: int | None, largest: int | None) -> None:
    assert quota.largest_call(tokens, requests) == largest
