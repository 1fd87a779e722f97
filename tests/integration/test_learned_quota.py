"""A learned quota between processes: in a real Redis, while that is away, and when it has lost its data."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis.asyncio

from engine.limiter import lua, quota
from engine.limiter.bucket import AcquireRequest, CallResult, CallSignal, Verdict
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.redis_store import RedisStore
from engine.observability.telemetry import REGISTRY
from models.errors import UpstreamRateLimited
from providers.base import UpstreamReply
from tests import fakes
from tests.integration.paced_processes import QUOTA, Relay, call, opened, paced_route, refusing

NAME = "learned|m"


def coordinator_of(shared: RedisStore, *, requests: int | None = None) -> BucketCoordinator:
    coordinator = BucketCoordinator(shared, NAME, max_concurrency=8, slot_ttl_s=60.0)
    coordinator.set_limits(quota.token_bucket(QUOTA), quota.request_bucket(requests))
    return coordinator


async def refuse(coordinator: BucketCoordinator, *, after_tokens: float, kind: str = "") -> None:
    """One call of so many tokens is accepted, and the next refused."""
    assert (await coordinator.acquire(AcquireRequest("good", True, after_tokens, 90.0))).verdict is Verdict.ALLOW
    await coordinator.settle(CallResult("good", CallSignal.SUCCESS, accepted_tokens=after_tokens))
    await coordinator.settle(CallResult("refused", CallSignal.RATE_LIMITED, cooldown_s=0.0, quota_kind=kind))


async def test_what_one_process_learns_all_keep_to(pacing_redis: redis.asyncio.Redis, redis_url: str) -> None:
    processes = [RedisStore(redis_url) for _ in range(2)]
    worker, api = (coordinator_of(shared) for shared in processes)
    await refuse(worker, after_tokens=QUOTA / 2)
    assert worker.shares == pytest.approx((0.5, 1.0), abs=0.01) and api.shares == (1.0, 1.0)
    answer = await api.acquire(AcquireRequest("sync", True, 1.0, 0.0))
    assert api.shares == pytest.approx((0.5, 1.0), abs=0.01)
    # What the first call left to be paid for drains at half the rate.
    assert answer.wait_s >= 0.9 * (QUOTA / 2) / (quota.token_bucket(QUOTA).rate / 2) - 2
    for shared in processes:
        await shared.close()


async def test_it_outlives_redis_and_the_loss_of_its_data(pacing_redis: redis.asyncio.Redis, redis_url: str) -> None:
    async with Relay.to(redis_url) as relay:
        shared = RedisStore(relay.url)
        coordinator = coordinator_of(shared, requests=600)
        await refuse(coordinator, after_tokens=QUOTA * 0.4, kind="tokens")
        assert coordinator.shares == pytest.approx((0.4, 1.0), abs=0.01)
        relay.open = False
        relay.cut()
        await coordinator.acquire(AcquireRequest("alone", True, 1.0, 0.0))
        assert coordinator._is_local and coordinator._local.shares(asyncio.get_running_loop().time())[
            0
        ] == pytest.approx(0.4, abs=0.01)
        await pacing_redis.delete(*lua.keys_of(NAME))
        relay.open = True
        async with asyncio.timeout(5):
            while coordinator._is_local:
                await asyncio.sleep(0.05)
                await coordinator.acquire(AcquireRequest("back", True, 1.0, 0.0))
        assert coordinator.shares == pytest.approx((0.4, 1.0), abs=0.01)
        other = coordinator_of(shared, requests=600)
        await other.acquire(AcquireRequest("other", True, 1.0, 0.0))
        assert other.shares == pytest.approx((0.4, 1.0), abs=0.01)
        await shared.close()


async def test_a_process_that_is_alone_learns_too_and_tells_the_others(
    pacing_redis: redis.asyncio.Redis, redis_url: str
) -> None:
    async with Relay.to(redis_url) as relay:
        shared = RedisStore(relay.url)
        coordinator = coordinator_of(shared)
        await coordinator.acquire(AcquireRequest("first", True, 1.0, 0.0))
        relay.open = False
        relay.cut()
        await coordinator.acquire(AcquireRequest("alone", True, 1.0, 90.0))
        for number in range(3):
            await coordinator.settle(CallResult(f"refused-{number}", CallSignal.RATE_LIMITED, cooldown_s=0.0))
        assert coordinator._is_local and coordinator.shares[0] == pytest.approx(
            0.98, abs=0.01
        )  # the last minute was taken as busy
        relay.open = True
        async with asyncio.timeout(5):
            while coordinator._is_local:
                await asyncio.sleep(0.05)
                await coordinator.acquire(AcquireRequest("back", True, 1.0, 0.0))
        await coordinator.acquire(AcquireRequest("told", True, 1.0, 0.0))
        assert "1=0.97" in str(await pacing_redis.hget(lua.keys_of(NAME)[0], "learned"))
        await shared.close()


async def test_calls_of_bulk_and_the_metric_follow(pacing_redis: redis.asyncio.Redis, redis_url: str) -> None:
    route = paced_route()
    wire = fakes.FakeWire(up=refusing({"retry-after-ms": "100"}, refused=1))
    upstream = opened(redis_url, wire, route)
    assert upstream.limiter(route).max_learned_call_tokens is None
    with pytest.raises(UpstreamRateLimited):
        await call(upstream, route)
    await call(upstream, route)
    assert upstream.limiter(route).max_learned_call_tokens == QUOTA * quota.BULK_CALL / 4
    labels = {"provider": route.provider, "model": route.upstream_model, "quota": "tokens"}
    assert REGISTRY.get_sample_value("embedmill_quota_share", labels) == 0.25
    await upstream.close()


async def test_a_lower_limit_in_headers_counts_at_once(pacing_redis: redis.asyncio.Redis, redis_url: str) -> None:
    route = paced_route()
    headers = {"x-ratelimit-limit-tokens": str(QUOTA // 2), "x-ratelimit-remaining-tokens": str(QUOTA // 3)}
    wire = fakes.FakeWire(up=fakes.fake())
    wire.edit = lambda reply: UpstreamReply(reply.status, {**reply.headers, **headers}, reply.body)
    upstream = opened(redis_url, wire, route)
    await call(upstream, route)
    assert upstream.limiter(route).coordinator._params[0].per_minute == QUOTA // 2
    assert upstream.limiter(route).max_learned_call_tokens == QUOTA // 2 * quota.BULK_CALL
    await upstream.close()


async def test_a_refusal_that_names_no_time_is_waited_out_within_the_patience(
    pacing_redis: redis.asyncio.Redis, redis_url: str
) -> None:
    route = paced_route()
    wire = fakes.FakeWire(up=refusing({}, refused=1))
    embed_run = fakes.new_run(wire, fakes.alias(route), 1, lane="interactive")
    process = opened(redis_url, wire, route)
    embed_run.upstream, embed_run.router = process.upstream, process.router
    began = time.monotonic()
    await fakes.embed_texts(embed_run, ["a"])
    assert 1.0 <= time.monotonic() - began < 3.0
    await embed_run.upstream.close()
