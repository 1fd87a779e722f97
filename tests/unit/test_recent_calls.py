"""What a process remembers of recent calls of a route: latencies and success rates, by the time that is passed in."""

from __future__ import annotations

import sys

import pytest

from engine.route_state.recent_calls import RecentCalls

NOON = 1_000_000.0


def test_without_calls_nothing_is_claimed() -> None:
    calls = RecentCalls()
    assert calls.latency_s(NOON, 0.5) is None and calls.success_rate(NOON, 900.0) is None


@pytest.mark.parametrize(("share", "seconds"), [(0.5, 50.0), (0.95, 95.0), (1.0, 100.0), (0.001, 1.0)])
def test_percentiles_are_of_the_nearest_rank(share: float, seconds: float) -> None:
    calls = RecentCalls()
    for number in range(100, 0, -1):
        calls.answered(NOON, float(number))
    assert calls.latency_s(NOON, share) == seconds


def test_only_the_latest_256_calls_of_the_last_hour_count_for_the_latency() -> None:
    calls = RecentCalls()
    for _ in range(256):
        calls.answered(NOON, 9.0)
    for _ in range(200):
        calls.answered(NOON + 1800.0, 1.0)
    assert (calls.latency_s(NOON + 1800.0, 0.78), calls.latency_s(NOON + 1800.0, 0.8)) == (1.0, 9.0)
    assert calls.latency_s(NOON + 3601.0, 1.0) == 1.0
    assert calls.latency_s(NOON + 5401.0, 1.0) is None


def test_each_window_has_the_calls_of_its_time() -> None:
    calls = RecentCalls()
    calls.failed(NOON)
    calls.answered(NOON + 3000.0, 1.0)
    calls.answered(NOON + 3000.0, 1.0)
    now = NOON + 3000.0
    rates = [calls.success_rate(now, window_s) for window_s in (900.0, 3600.0, 86_400.0)]
    assert rates == [1.0, pytest.approx(2 / 3), pytest.approx(2 / 3)]
    now = NOON + 8000.0
    rates = [calls.success_rate(now, window_s) for window_s in (900.0, 3600.0, 86_400.0)]
    assert rates == [None, None, pytest.approx(2 / 3)]
    assert calls.success_rate(NOON + 3000.0 + 86_400.0 + 900.0, 86_400.0) is None


def test_a_slot_that_is_used_again_has_only_its_new_calls() -> None:
    calls = RecentCalls()
    calls.failed(NOON)
    calls.answered(NOON + 61 * 60.0, 1.0)  # the minute's slot of the failure
    assert calls.success_rate(NOON + 61 * 60.0, 3600.0) == 1.0


def test_memory_does_not_grow_with_calls_or_time() -> None:
    calls = RecentCalls()

    def size() -> int:
        parts = [calls._latencies, *(getattr(c, n) for c in (calls._minutes, calls._quarters) for n in c.__slots__)]
        return sum(map(sys.getsizeof, parts))

    for number in range(2000):
        calls.answered(NOON + number * 60.0, 1.0)
    before = size()
    for number in range(2000, 6000):
        calls.failed(NOON + number * 60.0)
        calls.answered(NOON + number * 60.0, 1.0)
    assert size() == before
