"""Pacing between processes, with the buckets in a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from dataclasses import replace
from typing import Any

import orjson
import pytest
import redis.asyncio

from engine.embedding.embed import embed
from engine.limiter import lua, quota
from engine.planning import packing
from models.embedding import Options, Route
from models.errors import DeadlineExceeded, UpstreamRateLimited
from providers.base import UpstreamReply
from tests import fakes
from tests.integration.paced_processes import QUOTA, Process, call, opened, paced_route, refusing
from tests.waiting import until


async def await_recent_429s(process: Process, route: Route) -> None:
    """The news of the other processes has come."""
    async with asyncio.timeout(10):
        while not process.limiter(route).is_paced:
            process.limiters.refresh_recent_429s()
            assert process.limiters._refreshing is not None
            await process.limiters._refreshing


@pytest.mark.parametrize("tokens_per_minute", [QUOTA, None])
async def test_a_429_closes_the_gate_for_all_processes_and_one_probe_opens_it(
    pacing_redis: redis.asyncio.Redis, redis_url: str, tokens_per_minute: int | None
) -> None:
    wire = fakes.FakeWire(up=refusing({"retry-after-ms": "900"}, refused=1))
    route = paced_route(tokens_per_minute=tokens_per_minute)
    first, *others = (opened(redis_url, wire, route) for _ in range(4))
    for other in others:
        other.limiter(route)  # every process has made calls before, and so hears the news
    loop = asyncio.get_running_loop()
    with pytest.raises(UpstreamRateLimited):
        await call(first, route)
    closed_at = loop.time()
    if tokens_per_minute is None:  # who has no quota asks nobody: the news comes within a second
        for other in (first, *others):
            await await_recent_429s(other, route)
    await asyncio.gather(*(call(other, route) for other in (first, *others) for _ in range(5)))
    early = [at for at in wire.sent_at if closed_at < at < closed_at + 0.89]
    assert early == [] and len(wire.sent) == 21
    second_wave = sorted(at for at in wire.sent_at if at > closed_at)
    assert second_wave[1] - second_wave[0] > 0 and wire.most_in_flight <= 20
    for upstream in (first, *others):
        await upstream.close()


async def test_an_interactive_call_is_refused_at_once_when_its_deadline_is_nearer_than_its_turn(
    pacing_redis: redis.asyncio.Redis, redis_url: str
) -> None:
    route = paced_route()
    wire = fakes.FakeWire(up=fakes.fake())
    upstream = opened(redis_url, wire, route)
    await call(upstream, route, tokens=2600)
    began = time.monotonic()
    with pytest.raises(UpstreamRateLimited) as refused:
        await call(upstream, route, tokens=2600, seconds=0.5)
    assert time.monotonic() - began < 0.3
    assert 0.5 < (refused.value.retry_after_s or 0) <= 2.0 and len(wire.sent) == 1
    assert (refused.value.sent, refused.value.status) == (False, None)
    await call(upstream, route, tokens=2600, seconds=5.0)  # who has the time waits
    assert time.monotonic() - began > 0.5
    await upstream.close()


async def test_interactive_goes_before_bulk(pacing_redis: redis.asyncio.Redis, redis_url: str) -> None:
    route = paced_route()
    wire = fakes.FakeWire(up=fakes.fake())
    worker, api = opened(redis_url, wire, route), opened(redis_url, wire, route)
    bulk = [asyncio.create_task(call(worker, route, tokens=1500, interactive=False)) for _ in range(4)]
    await until(lambda: wire.sent)
    began = time.monotonic()
    await call(api, route, tokens=400)
    assert time.monotonic() - began < 0.3  # three bulk calls of 0.75 s each were in the line before it
    assert not all(task.done() for task in bulk)
    await asyncio.gather(*bulk)
    await worker.close()
    await api.close()


async def test_limits_are_learned_from_headers(pacing_redis: redis.asyncio.Redis, redis_url: str) -> None:
    route = paced_route(tokens_per_minute=None)
    headers = {"x-ratelimit-limit-tokens": str(QUOTA), "x-ratelimit-remaining-tokens": str(QUOTA - 1000)}
    wire = fakes.FakeWire(up=fakes.fake())
    wire.edit = lambda reply: UpstreamReply(reply.status, {**reply.headers, **headers}, reply.body)
    upstream = opened(redis_url, wire, route)
    await call(upstream, route, tokens=8000)  # nothing is known yet
    assert upstream.limiter(route).max_learned_call_tokens == QUOTA * quota.BULK_CALL
    with pytest.raises(UpstreamRateLimited):
        await call(upstream, route, tokens=8000, seconds=1.0)
    await upstream.close()


async def test_calls_of_bulk_shrink_with_a_quota_that_was_learned(redis_url: str) -> None:
    route = paced_route(tokens_per_minute=None)
    headers = {"x-ratelimit-limit-tokens": str(QUOTA), "x-ratelimit-remaining-tokens": str(QUOTA - 1000)}
    wire = fakes.FakeWire(up=fakes.fake())
    wire.edit = lambda reply: UpstreamReply(reply.status, {**reply.headers, **headers}, reply.body)
    texts = [f"text {n} " + "word " * 100 for n in range(32)]
    process = opened(redis_url, wire, route)
    embed_run = fakes.new_run(wire, fakes.alias(route), len(texts))
    embed_run.upstream, embed_run.router = process.upstream, process.router
    limits = replace(route.limits, inputs_per_call=28)
    [max_concurrency, rest] = packing.pack(texts, range(len(texts)), limits, fakes.WIDTH, Options())
    assert max_concurrency.tokens > QUOTA * quota.BULK_CALL  # it was packed before anything was known
    first, second = packing.slice_batch(rest, 0, 2), packing.slice_batch(rest, 2, 4)
    await embed(embed_run, [first, second, max_concurrency], concurrency=1)
    sizes = [len(orjson.loads(request.body)["input"]) for request in wire.sent]
    assert sizes[:2] == [2, 2] and len(sizes) > 3 and sum(sizes) == len(texts)
    assert max(sizes) * max_concurrency.tokens / len(max_concurrency.inputs) <= QUOTA * quota.BULK_CALL
    await embed_run.upstream.close()


async def test_a_worker_that_dies_gives_its_places_back(pacing_redis: redis.asyncio.Redis, redis_url: str) -> None:
    route = paced_route(max_concurrency=2)
    keys = lua.keys_of(f"{route.provider}|{route.upstream_model}")
    now = float((await pacing_redis.time())[0])
    await pacing_redis.zadd(keys[1], {"dead-1": now + 0.4, "dead-2": now + 0.4, "dead-3": now - 10})
    wire = fakes.FakeWire(up=fakes.fake())
    upstream = opened(redis_url, wire, route)
    began = time.monotonic()
    await call(upstream, route)
    assert time.monotonic() - began < 3.0
    await upstream.close()
    assert await pacing_redis.zcard(keys[1]) == 0


async def test_places_that_were_asked_for_are_of_all_processes_together(redis_url: str) -> None:
    """Two processes, no quota, two places."""
    route = paced_route(tokens_per_minute=None, max_concurrency=2, concurrency_is_global=True)
    wire = fakes.FakeWire(up=fakes.fake({"do": {"latency_ms": 30}}))
    processes = [opened(redis_url, wire, route) for _ in range(2)]
    calls = [call(processes[number % 2], route) for number in range(12)]
    await asyncio.gather(*calls)
    assert wire.most_in_flight == 2
    for process in processes:
        await process.close()


def hammer(redis_url: str, host: str, seconds: float, started: Any, report: Any) -> None:
    """One of several processes that call as fast as they may, each against a clock of Redis."""

    async def run() -> None:
        route = paced_route(host, tokens_per_minute=QUOTA)
        wire = fakes.FakeWire(**{host: fakes.fake()})
        upstream = opened(redis_url, wire, route)
        await call(upstream, route, tokens=1)
        started.wait()
        until, used = time.monotonic() + seconds, []

        async def caller() -> None:
            while time.monotonic() < until:
                with contextlib.suppress(UpstreamRateLimited, DeadlineExceeded):
                    await call(upstream, route, tokens=150, interactive=False, seconds=until - time.monotonic())
                    used.append((time.time(), 150))

        await asyncio.gather(*(caller() for _ in range(4)))
        await upstream.close()
        report.put(used)

    asyncio.run(run())


def test_four_processes_at_once_use_one_quota_and_no_more(redis_url: str) -> None:
    context, seconds = multiprocessing.get_context("fork"), 2.0
    started, report = context.Barrier(4), context.Queue()
    arguments = (redis_url, "four", seconds, started, report)
    processes = [context.Process(target=hammer, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    used = [part for _ in processes for part in report.get(timeout=60)]
    for process in processes:
        process.join(10)
    params = quota.token_bucket(QUOTA)
    lasted_s = max(at for at, _ in used) - min(at for at, _ in used)
    tokens = sum(size for _, size in used)
    assert tokens <= params.rate * lasted_s + params.burst + 150 * 4
    assert tokens >= 0.8 * params.rate * seconds
