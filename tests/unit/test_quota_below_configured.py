"""A provider whose real quota is lower than the configured one: what calls of both lanes meet, on a simulated clock."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from models.errors import UpstreamRateLimited
from providers.fake.rate_limit import RateLimit, Refusal, SlidingWindow
from tests.fakes import FakeWire, alias, embed_texts, fake, new_run, route, run
from tests.unit.rate_limit_simulation import LIMIT, START, Simulation, bucket_state

REQUESTS = 600


def world(real: float, *, of: str = "tokens", seed: int = 1) -> Simulation:
    """Configured: 1,000,000 tokens and 600 requests a minute. Real: a share of the one or of the other."""
    tokens, requests = (real, 1.0) if of == "tokens" else (1.0, real)
    rate = RateLimit(requests_per_minute=int(REQUESTS * requests), tokens_per_minute=int(LIMIT * tokens))
    return Simulation(bucket_state(LIMIT, REQUESTS), SlidingWindow(rate), seed, tells_wait=True)


def size_of(of: str) -> list[int]:
    return [12_000] if of == "tokens" else [800]


@pytest.mark.parametrize("of", ["tokens", "requests"])
@pytest.mark.parametrize("real", [0.5, 0.1])
@pytest.mark.parametrize("names_quota", [True, False])
def test_both_lanes_are_paced_by_the_quota_that_the_provider_really_has(
    real: float, of: str, names_quota: bool
) -> None:
    simulated = world(real, of=of)
    simulated.names_quota = names_quota
    every_s = 0.5
    if of == "requests":
        every_s, simulated.interactive_tokens = 2.0, 300  # half of a quota of 60 a minute, at the most
    simulated.max_wait_s = 5.0
    simulated.run(600, [int(size * max(real, 0.2)) for size in size_of(of)], callers=16, interactive_every_s=every_s)
    late = [waited for at, waited in simulated.waits if at >= START + 150]
    assert simulated.refused <= 24
    assert sorted(late)[len(late) * 99 // 100] < 2.5 and sorted(late)[len(late) // 2] < 0.05
    used, limit = (simulated.used, LIMIT) if of == "tokens" else (simulated.calls, REQUESTS)
    assert used / (limit * real * 10) >= 0.75


@dataclass
class TokenBucket:
    """A provider that counts in another way: what is not used is saved up, to a minute's quota."""

    per_minute: float
    left: float = 0.0
    at: float = START

    def take(self, tokens: int, now: float) -> Refusal | None:
        self.left = min(self.per_minute, self.left + (now - self.at) * self.per_minute / 60)
        self.at = now
        if tokens > self.left:
            wait_s = (tokens - self.left) * 60 / self.per_minute
            return Refusal("tokens", int(self.per_minute), int(self.per_minute - self.left), wait_s)
        self.left -= tokens
        return None


def test_a_provider_that_counts_in_another_way_is_learned_too() -> None:
    bucket = TokenBucket(LIMIT / 2, LIMIT / 2)
    simulated = Simulation(bucket_state(LIMIT, None), bucket, 1, tells_wait=True)
    simulated.run(600, [6000], callers=16, interactive_every_s=0.5)
    late = sorted(waited for at, waited in simulated.waits if at >= START + 150)
    assert simulated.refused <= 40 and simulated.used / (LIMIT * 5) >= 0.85
    assert late[len(late) * 99 // 100] < 1.0 and simulated.refused_at_once == 0


def paced_alias(*hosts: str) -> Any:
    routes = [route(host, priority=place) for place, host in enumerate(hosts)]
    limited = [dataclasses.replace(each.account, requests_per_minute=600) for each in routes]
    return alias(*(dataclasses.replace(each, account=account) for each, account in zip(routes, limited, strict=True)))


async def call_in_turn(wire: FakeWire, of: Any, count: int, **fields: Any) -> list[tuple[float, Exception | None]]:
    """How long each of these interactive calls took, and its error."""
    embed_run = new_run(wire, of, 1, lane="interactive", **fields)
    loop, told = asyncio.get_running_loop(), list[tuple[float, Exception | None]]()
    for number in range(count):
        began, failure = loop.time(), None
        embed_run = dataclasses.replace(embed_run, calls=[], deadline=embed_run.deadline)
        try:
            await embed_texts(embed_run, [f"text {number}"])
        except UpstreamRateLimited as error:
            failure = error
        told.append((loop.time() - began, failure))
    return told


def test_a_wait_behind_a_gate_is_bounded_and_the_error_says_which_account_why_and_how_long() -> None:
    wire = FakeWire(up=fake({"do": {"status": 429, "retry_after": 30}}))
    [(took_s, error), (again_s, again)] = run(call_in_turn(wire, paced_alias("up"), 2))
    assert took_s < 0.5 and again_s < 0.5 and len(wire.sent) == 2  # the call, and a control call
    for each in (error, again):
        assert isinstance(each, UpstreamRateLimited) and 28 <= (each.retry_after_s or 0) <= 33.1
        assert "Provider account up, model m: it has answered 429" in each.message and "may start in 3" in each.message


def test_an_absurd_wait_fails_at_once_and_leaves_the_quota_as_it_was() -> None:
    wire = FakeWire(up=fake({"do": {"status": 429, "retry_after": 3600}}))
    of = paced_alias("up")
    [(took_s, error)] = run(call_in_turn(wire, of, 1))
    assert took_s < 0.5 and isinstance(error, UpstreamRateLimited) and (error.retry_after_s or 0) >= 100


@pytest.mark.parametrize("told", [{}, {"retry_after": 30}, {"retry_after": 3600}])
def test_another_route_stands_in_at_once_while_one_has_no_quota(told: dict[str, float]) -> None:
    wire = FakeWire(first=fake({"do": {"status": 429, **told}}), second=fake())
    took = run(call_in_turn(wire, paced_alias("first", "second"), 3))
    assert all(error is None and took_s < 4.0 for took_s, error in took)
    assert took[-1][0] < 0.5 and wire.hosts_called.count("second") == 3


def test_with_two_routes_the_shorter_wait_is_waited_for() -> None:
    refusing = {"times": 1, "do": {"status": 429, "retry_after": 2}}
    wire = FakeWire(first=fake(refusing), second=fake({"do": {"status": 429, "retry_after": 40}}))
    [(took_s, error)] = run(call_in_turn(wire, paced_alias("first", "second"), 1))
    assert error is None and 2.0 <= took_s < 3.0
    assert wire.hosts_called == ["first", "second", "second", "first"]  # a long wait is checked by a control call


def test_a_short_wait_behind_a_gate_is_waited_out() -> None:
    wire = FakeWire(up=fake({"times": 1, "do": {"status": 429, "retry_after": 3}}))
    [(took_s, error)] = run(call_in_turn(wire, paced_alias("up"), 1))
    assert error is None and 3.0 <= took_s < 4.0
