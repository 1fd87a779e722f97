"""When calls of a route count as far slower than usual."""

from __future__ import annotations

import pytest

from engine.limiter.congestion import RecentLatency


# The 21st call weighs a fifth in the recent mean and a fiftieth in the baseline: 7.6 s are below 4 x 1.66 s + 1 s, and
# 7.8 s are above 4 x 1.68 s + 1 s.
@pytest.mark.parametrize(("seconds", "is_slow"), [(1.0, False), (10.0, False), (34.0, False), (35.0, True)])
def test_calls_are_slow_above_four_times_the_usual_and_a_second(seconds: float, is_slow: bool) -> None:
    latency = RecentLatency()
    assert not any(latency.observe(1.0) for _ in range(20))
    assert latency.observe(seconds) is is_slow


def test_the_first_twenty_calls_are_the_measure_and_never_slow() -> None:
    latency = RecentLatency()
    assert [latency.observe(seconds) for seconds in [0.1] * 10 + [60.0] * 10] == [False] * 20
    assert latency.baseline_s == pytest.approx(30.05)
