"""Pacing where Redis is away, frozen, or was never there: each process keeps to its part."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from engine.limiter import quota
from engine.limiter.bucket import AcquireRequest, CallResult, CallSignal, Verdict
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.redis_store import RedisStore
from engine.observability.telemetry import LOCAL_FALLBACKS
from tests import fakes
from tests.integration.paced_processes import QUOTA, TOKENS_PER_S, Relay, opened, paced_route


def value_of(counter: Any) -> float:
    return float(counter._value.get())


async def test_a_redis_that_is_away_leaves_each_process_its_share(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection goes through a relay that is closed and opened again."""
    async with Relay.to(redis_url) as relay:
        shared = RedisStore(relay.url)
        coordinators = [BucketCoordinator(shared, f"away|{n}", max_concurrency=8, slot_ttl_s=60.0) for n in range(2)]
        coordinator, before = coordinators[0], value_of(LOCAL_FALLBACKS)
        coordinator.set_limits(quota.token_bucket(QUOTA), quota.UNLIMITED)
        coordinator._processes = 4  # as Redis said last
        coordinator.set_limits(quota.token_bucket(QUOTA), quota.UNLIMITED)
        relay.open = False
        relay.cut()
        asked = [await coordinator.acquire(AcquireRequest(f"s{i}", True, 100.0, 0.0)) for i in range(40)]
        granted = sum(answer.verdict is Verdict.ALLOW for answer in asked)
        assert granted <= 40 / 4 and value_of(LOCAL_FALLBACKS) == before + 40
        # What drains in a second for one of four processes.
        async with asyncio.timeout(5):
            later = AcquireRequest("later", True, TOKENS_PER_S * 0.2 / 4, 0.0)
            while (await coordinator.acquire(later)).verdict is not Verdict.ALLOW:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        relay.open = True
        async with asyncio.timeout(5):
            while shared._is_down:
                await asyncio.sleep(0.05)
                await coordinator.acquire(AcquireRequest("again", True, 1.0, 0.0))
        await coordinator.settle(CallResult("later", CallSignal.SUCCESS))
        await shared.close()
    reply = [record.message for record in caplog.records if record.name == "embedmill.limiter"]
    assert [("away" in each, "back" in each) for each in reply] == [(True, False), (False, True)]


@pytest.mark.parametrize("processes", [1, 4])
async def test_without_any_redis_each_process_keeps_to_its_part(processes: int) -> None:
    process = opened("", fakes.FakeWire())
    assert not process.limiters.uses_redis
    line = process.limiter(paced_route("first"))
    process.limiters.split_among(processes)
    later = process.limiter(paced_route("later"))
    for each in (line, later):
        granted = 0
        while (
            await each.coordinator.acquire(AcquireRequest(f"s{granted}", True, QUOTA * 0.001, 0.0))
        ).verdict is Verdict.ALLOW:
            granted += 1
        assert granted == 22 // processes  # of a burst of 2.2 % of the quota
    await process.close()


async def test_a_redis_that_is_frozen_costs_a_quarter_of_a_second_and_not_each_time(redis_url: str) -> None:
    async with Relay.to(redis_url) as relay:
        shared = RedisStore(relay.url)
        coordinator = BucketCoordinator(shared, "frozen", max_concurrency=8, slot_ttl_s=60.0)
        relay.silent = True
        began = time.monotonic()
        for number in range(50):
            assert (
                await coordinator.acquire(AcquireRequest(f"s{number % 4}", True, 1.0, 0.0))
            ).verdict is Verdict.ALLOW
        assert time.monotonic() - began < 1.0
        await shared.close()
