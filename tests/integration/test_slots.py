"""Places of calls in Redis: those of dead processes are free at once here and soon elsewhere; the others stay."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from engine.limiter import lua
from engine.limiter.bucket import AcquireRequest, CallResult, CallSignal, Verdict
from engine.limiter.coordinator import SLOT_LEASE_S, BucketCoordinator
from engine.limiter.redis_store import RedisStore
from engine.process.process_names import process_name
from tests.waiting import until

NAME = "account|model"
LIST_SLOTS = lua.keys_of(NAME)[1]
FAR_S = 10_000.0


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    await client.delete(*lua.keys_of(NAME))
    yield client
    await client.aclose()


@pytest.fixture
async def coordinator(redis_url: str) -> AsyncIterator[BucketCoordinator]:
    shared = RedisStore(redis_url)
    coordinator = BucketCoordinator(shared, NAME, max_concurrency=2, slot_ttl_s=90.0, concurrency_is_global=True)
    yield coordinator
    await coordinator.close()
    await shared.close()


def acquire_request(slot: str) -> AcquireRequest:
    return AcquireRequest(slot, True, 1.0, 60.0)


async def redis_now(client: redis.asyncio.Redis) -> float:
    seconds, micros = await client.time()
    return float(seconds) + float(micros) / 1e6


async def test_places_of_a_killed_process_of_this_machine_are_free_at_once(
    client: redis.asyncio.Redis, coordinator: BucketCoordinator
) -> None:
    dead = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await dead.wait()
    name = f"{process_name().rpartition(':')[0]}:{dead.pid}#0a1b"
    until = await redis_now(client) + FAR_S
    await client.zadd(LIST_SLOTS, {f"{name}-1": until, f"{name}-2": until})
    assert (await coordinator.acquire(acquire_request("mine-1"))).verdict is Verdict.AT_CAPACITY  # and it looks about
    assert (await coordinator.acquire(acquire_request("mine-1"))).verdict is Verdict.ALLOW


async def test_places_of_living_processes_and_of_other_machines_are_left_to_their_leases(
    client: redis.asyncio.Redis, coordinator: BucketCoordinator
) -> None:
    until = await redis_now(client) + FAR_S
    await client.zadd(LIST_SLOTS, {f"{process_name()}#x-1": until, "elsewhere/0/pid:1#y-1": until})
    for _ in range(2):
        assert (await coordinator.acquire(acquire_request("mine-1"))).verdict is Verdict.AT_CAPACITY
    assert await client.zcard(LIST_SLOTS) == 2


async def test_a_place_is_a_short_lease_that_its_process_renews(
    client: redis.asyncio.Redis, coordinator: BucketCoordinator
) -> None:
    assert (await coordinator.acquire(acquire_request("mine-1"))).verdict is Verdict.ALLOW
    first = float(await client.zscore(LIST_SLOTS, "mine-1") or 0)
    assert first - await redis_now(client) <= SLOT_LEASE_S <= 15

    async def is_renewed() -> bool:
        return float(await client.zscore(LIST_SLOTS, "mine-1") or 0) > first

    await until(is_renewed, every_s=0.1)
    await coordinator.settle(CallResult("mine-1", CallSignal.SUCCESS))
    assert await client.zcard(LIST_SLOTS) == 0


async def test_a_redis_that_lost_its_data_learns_of_the_calls_under_way(
    client: redis.asyncio.Redis, coordinator: BucketCoordinator
) -> None:
    assert (await coordinator.acquire(acquire_request("mine-1"))).verdict is Verdict.ALLOW
    await client.delete(LIST_SLOTS, *lua.keys_of(NAME))
    await until(lambda: client.zcard(LIST_SLOTS), every_s=0.1)
