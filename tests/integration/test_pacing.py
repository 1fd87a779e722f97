"""Pacing between processes: the book in a real Redis, and what each process does when Redis is away."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
import pytest
import redis.asyncio

from engine.embedding.embed import embed
from engine.limiter import lua, quota
from engine.limiter.bucket import AcquireRequest, BucketState, CallResult, CallSignal, Verdict
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.redis_store import RedisStore
from engine.limiter.registry import LimiterRegistry
from engine.limiter.route_limiter import RouteLimiter
from engine.observability.telemetry import LOCAL_FALLBACKS
from engine.planning import packing
from engine.routing.router import Router
from engine.upstream.call import CallContext, Upstream
from models.embedding import Batch, Call, Options, Route
from models.errors import DeadlineExceeded, UpstreamRateLimited
from providers.base import UpstreamReply, UpstreamRequest
from tests import fakes

START = 1_700_000_000.0


def value_of(counter: Any) -> float:
    return float(counter._value.get())


@dataclass
class Relay:
    """A TCP relay to Redis that can be closed, and made to say nothing."""

    host: str
    port: int
    path: str
    open: bool = True
    silent: bool = False
    server: asyncio.Server | None = None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @classmethod
    def to(cls, url: str) -> Self:
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 6379, parts.path)

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"redis://127.0.0.1:{self.server.sockets[0].getsockname()[1]}{self.path}"

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.server is not None
        self.cut()
        self.server.close()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        if not self.open:
            writer.transport.abort()
            return
        to_reader, to_writer = await asyncio.open_connection(self.host, self.port)
        self.writers.append(to_writer)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while (data := await source.read(65536)) and self.open:
                    if not self.silent:
                        sink.write(data)
            sink.transport.abort()

        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    yield client
    for key in await client.keys("*em:pace:*"):
        await client.delete(key)
    await client.aclose()


def shares_in(reply: Sequence[str]) -> tuple[float, ...]:
    return tuple(map(float, reply)) or (1.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
async def test_redis_says_what_the_book_says(client: redis.asyncio.Redis, seed: int) -> None:
    """The same asks and ends, at the same instants, by the rules in Lua and by those in Python."""
    rng = random.Random(seed)
    params = (quota.token_bucket(rng.choice([None, 60_000])), quota.request_bucket(rng.choice([None, 30])))
    bucket = BucketState(6, 20.0, *params, updated_at=START)
    keys = lua.keys_of(f"parity|{seed}")
    ask_script, end_script = client.register_script(lua.ACQUIRE), client.register_script(lua.SETTLE)
    now, lowest = START, 1.0
    under_way: list[str] = []
    for turn in range(180):  # in less time than a share takes to rise
        now += rng.choice([0.0, 0.011, 0.303, 2.007])
        if under_way and rng.random() < 0.45:
            slot = under_way.pop(rng.randrange(len(under_way)))
            signal = rng.choice([*CallSignal, CallSignal.SUCCESS, CallSignal.SUCCESS, CallSignal.SUCCESS])
            cooldown_s = rng.choice([None, 0.001, 0.05, 0.5, 3.0])
            change = rng.choice([0.0, -400.0, 200.0])
            end = CallResult(slot, signal, change, rng.choice([0.0, -1.0]), cooldown_s, rng.random())
            end = replace(
                end, quota_kind=rng.choice(["", "tokens", "requests"]), is_quota_nearly_spent=rng.random() < 0.05
            )
            if signal not in (CallSignal.RATE_LIMITED, CallSignal.NONE):
                end = replace(end, accepted_tokens=rng.choice([100.0, 900.0, 5000.0]))
            bucket.settle(end, now)
            reply = await end_script(keys[:2], lua.settle_arguments(end, max_concurrency=6, params=params, now=now))
            assert float(reply[0]) == pytest.approx(max(0.0, bucket.cooldown_until - now), abs=1e-4)
            assert float(reply[1]) == pytest.approx(bucket.concurrency_limit, abs=1e-3)
            assert shares_in(reply[2:]) == pytest.approx(bucket.shares(now), abs=1e-4)
            lowest = min(lowest, *shares_in(reply[2:]))
            continue
        size = rng.choice([100.0, 900.0, 5000.0])
        ask = AcquireRequest(f"s{turn}", rng.random() < 0.5, size, rng.choice([0.0, 1.0, 20.0]), rng.random() < 0.1)
        expected = bucket.acquire(ask, now)
        arguments = lua.acquire_arguments(ask, max_concurrency=6, slot_ttl_s=20.0, params=params, now=now)
        verdict, wait, _, tokens, requests, concurrency_limit, *shares = await ask_script(keys, arguments)
        assert verdict == expected.verdict.value and float(wait) == pytest.approx(expected.wait_s, abs=1e-3, rel=1e-3)
        assert float(tokens) == pytest.approx(bucket.token_debt, abs=0.1, rel=1e-3)
        assert float(requests) == pytest.approx(bucket.request_debt, abs=0.001, rel=1e-3)
        assert float(concurrency_limit) == pytest.approx(bucket.concurrency_limit, abs=1e-3)
        assert shares_in(shares) == pytest.approx(bucket.shares(now), abs=1e-4)
        if expected.verdict is Verdict.ALLOW:
            under_way.append(ask.slot)
    assert await client.ttl(keys[0]) > 0
    assert (lowest < 0.9) == any(params.rate for params in params)
    for pause_s in (100.0, 50.0, 400.0, 2000.0):
        now += pause_s
        expected = bucket.acquire(last := AcquireRequest(f"p{pause_s}", True, 1.0, 0.0), now)
        arguments = lua.acquire_arguments(last, max_concurrency=6, slot_ttl_s=20.0, params=params, now=now)
        reply = await ask_script(keys, arguments)
        assert shares_in(reply[6:]) == pytest.approx(bucket.shares(now), abs=1e-4)
    assert reply[0] == expected.verdict.value and bucket.shares(now) == (1.0, 1.0)


TOKENS_PER_S = 2000
QUOTA = TOKENS_PER_S * 60


def paced_route(host: str = "up", *, tokens_per_minute: int | None = QUOTA, **account: Any) -> Route:
    plain = fakes.route(host)
    fields = {"tokens_per_minute": tokens_per_minute, **account}
    return replace(plain, account=replace(plain.account, **fields))


@dataclass
class Process:
    """What one process has: a wire, its limiters, and the state of its routes."""

    limiters: LimiterRegistry
    upstream: Upstream
    router: Router

    def limiter(self, route: Route) -> RouteLimiter:
        return self.router.state_of(route).limiter

    async def close(self) -> None:
        await self.upstream.close()


def opened(redis_url: str, wire: fakes.FakeWire, *routes: Route) -> Process:
    limiters = LimiterRegistry(redis_url)
    upstream = Upstream(wire, [route.account for route in routes], limiters, max_reply_bytes=1 << 20)
    return Process(limiters, upstream, Router(limiters))


async def call(
    process: Process, route: Route, *, tokens: int = 100, interactive: bool = True, seconds: float = 10.0
) -> list[Call]:
    text = "x" * (tokens * 4)  # as many tokens as the fake counts
    batch = Batch([text], [0], tokens, fakes.WIDTH, Options())
    calls: list[Call] = []
    context = CallContext(process.router.state_of(route), time.monotonic() + seconds, calls, interactive=interactive)
    await process.upstream.embed(batch, route, context)
    return calls


async def await_recent_429s(process: Process, route: Route) -> None:
    """The news of the other processes has come."""
    async with asyncio.timeout(10):
        while not process.limiter(route).is_paced:
            process.limiters.refresh_recent_429s()
            assert process.limiters._refreshing is not None
            await process.limiters._refreshing


def refusing(headers: dict[str, str], refused: int) -> Callable[[UpstreamRequest], UpstreamReply]:
    """An upstream that answers the first calls with 429, and then as usual."""
    good, left = fakes.fake(), [refused]

    def answer(request: UpstreamRequest) -> UpstreamReply:
        left[0] -= 1
        if left[0] >= 0:
            return UpstreamReply(429, headers, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}')
        return good.answer(request, time.time()).reply

    return answer


@pytest.mark.parametrize("tokens_per_minute", [QUOTA, None])
async def test_a_429_closes_the_gate_for_all_processes_and_one_probe_opens_it(
    client: redis.asyncio.Redis, redis_url: str, tokens_per_minute: int | None
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
    client: redis.asyncio.Redis, redis_url: str
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


async def test_interactive_goes_before_bulk(client: redis.asyncio.Redis, redis_url: str) -> None:
    route = paced_route()
    wire = fakes.FakeWire(up=fakes.fake())
    worker, api = opened(redis_url, wire, route), opened(redis_url, wire, route)
    bulk = [asyncio.create_task(call(worker, route, tokens=1500, interactive=False)) for _ in range(4)]
    async with asyncio.timeout(5):
        while not wire.sent:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    began = time.monotonic()
    await call(api, route, tokens=400)
    assert time.monotonic() - began < 0.3  # three bulk calls of 0.75 s each were in the line before it
    assert not all(task.done() for task in bulk)
    await asyncio.gather(*bulk)
    await worker.close()
    await api.close()


async def test_limits_are_learned_from_headers(client: redis.asyncio.Redis, redis_url: str) -> None:
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


async def test_a_worker_that_dies_gives_its_places_back(client: redis.asyncio.Redis, redis_url: str) -> None:
    route = paced_route(max_concurrency=2)
    keys = lua.keys_of(f"{route.provider}|{route.upstream_model}")
    now = float((await client.time())[0])
    await client.zadd(keys[1], {"dead-1": now + 0.4, "dead-2": now + 0.4, "dead-3": now - 10})
    wire = fakes.FakeWire(up=fakes.fake())
    upstream = opened(redis_url, wire, route)
    began = time.monotonic()
    await call(upstream, route)
    assert time.monotonic() - began < 3.0
    await upstream.close()
    assert await client.zcard(keys[1]) == 0


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
