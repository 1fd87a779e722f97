"""Processes that share one quota in Redis, as a test plays them in its own, and the way to Redis that can be closed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlsplit

from engine.limiter.registry import LimiterRegistry
from engine.limiter.route_limiter import RouteLimiter
from engine.routing.router import Router
from engine.upstream.call import CallContext, Upstream
from models.embedding import Batch, Call, Options, Route
from providers.base import UpstreamReply, UpstreamRequest
from tests import fakes


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


def refusing(headers: dict[str, str], refused: int) -> Callable[[UpstreamRequest], UpstreamReply]:
    """An upstream that answers the first calls with 429, and then as usual."""
    good, left = fakes.fake(), [refused]

    def answer(request: UpstreamRequest) -> UpstreamReply:
        left[0] -= 1
        if left[0] >= 0:
            return UpstreamReply(429, headers, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}')
        return good.answer(request, time.time()).reply

    return answer
