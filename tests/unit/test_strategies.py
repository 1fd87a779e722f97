"""The order of routes of one priority: by weight, cost, latency, load or caller; priority always comes first."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import get_args

import pytest

from engine.routing.router import Router
from engine.routing.strategies import SORTS, STRATEGIES
from models.embedding import Strategy
from tests import fakes

A, B = fakes.route("a", priority=1), fakes.route("b", priority=1)
BACKUP = fakes.route("backup", priority=2)


def firsts(router: Router, strategy: Strategy, *, count: int = 1, key: str = "p") -> Counter[str]:
    of = replace(fakes.alias(BACKUP, A, B), strategy=strategy)
    orders = [[route.provider for route in router.candidates(of, key)] for _ in range(count)]
    assert all(order[-1] == "backup" and len(order) == 3 for order in orders)
    return Counter(order[0] for order in orders)


def test_every_strategy_of_the_configuration_is_one() -> None:
    assert set(STRATEGIES) == set(get_args(Strategy)) and set(SORTS.values()) <= set(STRATEGIES)


def test_least_cost() -> None:
    cheap = replace(B, usd_per_million_tokens=Decimal("0.001"))
    of = replace(fakes.alias(A, cheap), strategy="least-cost")
    assert [route.provider for route in Router().candidates(of)] == ["b", "a"]


def test_least_latency_tries_what_was_never_called_and_then_keeps_to_the_quicker_one() -> None:
    router = Router()
    router.state_of(A).recent_calls.answered(time.monotonic(), 0.2)
    assert firsts(router, "least-latency") == {"b": 1}
    router.state_of(B).recent_calls.answered(time.monotonic(), 0.5)
    assert firsts(router, "least-latency", count=20) == {"a": 20}
    for _ in range(30):
        router.state_of(A).recent_calls.answered(time.monotonic(), 3.0)
    assert firsts(router, "least-latency") == {"b": 1}


def test_least_busy() -> None:
    router = Router()
    router.state_of(A).in_flight = 3
    assert firsts(router, "least-busy", count=10) == {"b": 10}
    router.state_of(B).in_flight = 4
    assert firsts(router, "least-busy", count=10) == {"a": 10}


def test_hash_keeps_a_caller_on_its_route_and_spreads_callers() -> None:
    router = Router()
    chosen = [firsts(router, "hash", count=5, key=f"project {number}") for number in range(200)]
    assert all(len(each) == 1 for each in chosen)
    spread = Counter(next(iter(each)) for each in chosen)
    assert min(spread.values()) > 60


def test_weighted_gives_each_its_share() -> None:
    assert min(firsts(Router(), "weighted", count=400).values()) > 120


@pytest.mark.parametrize("count", [1, 2])
def test_equal_ones_are_chosen_by_chance(count: int) -> None:
    assert set(firsts(Router(), "least-cost", count=100 * count)) == {"a", "b"}
