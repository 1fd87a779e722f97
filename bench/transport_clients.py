"""The HTTP clients that are compared, each as we would use it.

That is: a total deadline, a bounded body, no redirects, no proxies of the environment, no inflating.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterable, Callable
from typing import Protocol, cast

HEADERS = {"authorization": "Bearer sk-0123456789", "content-type": "application/json", "accept-encoding": "identity"}
MEGABYTE = 1024 * 1024


class TooLongError(Exception):
    pass


class Contender(Protocol):
    async def call(self, url: str, body: bytes, timeout_s: float, max_bytes: int) -> tuple[int, bytes]: ...

    async def close(self) -> None: ...


class HttpxAiohttp:
    """The httpx transport over aiohttp, without httpx's client above it."""

    def __init__(self) -> None:
        import httpx
        from httpx_aiohttp import AiohttpTransport

        self.httpx = httpx
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=15)
        self.transport = AiohttpTransport(trust_env=False, limits=limits)

    async def call(self, url: str, body: bytes, timeout_s: float, max_bytes: int) -> tuple[int, bytes]:
        request = self.httpx.Request("POST", url, headers=HEADERS, content=body)
        request.extensions["timeout"] = {"connect": 2.0, "read": None, "write": None, "pool": None}
        async with asyncio.timeout(timeout_s):
            response = await self.transport.handle_async_request(request)
            try:
                chunks, read_bytes = [], 0
                async for chunk in cast("AsyncIterable[bytes]", response.stream):
                    read_bytes += len(chunk)
                    if read_bytes > max_bytes:
                        raise TooLongError
                    chunks.append(chunk)
                return response.status_code, b"".join(chunks)
            finally:
                await response.aclose()

    async def close(self) -> None:
        await self.transport.aclose()


class Aiohttp:
    """The shipped wire."""

    def __init__(self) -> None:
        from engine.upstream.http import HttpTransport

        self.wire = HttpTransport(connect_timeout_s=2.0)

    async def call(self, url: str, body: bytes, timeout_s: float, max_bytes: int) -> tuple[int, bytes]:
        from providers.base import UpstreamRequest

        request = UpstreamRequest("POST", url, HEADERS, body)
        reply = await self.wire.send(request, timeout_s=timeout_s, max_reply_bytes=max_bytes)
        return reply.status, reply.body

    async def close(self) -> None:
        await self.wire.close()


class Pyreqwest:
    """Up to 2 MB gathered off the loop, then chunk by chunk: its cheapest bounded way of reading."""

    def __init__(self) -> None:
        from pyreqwest.client import ClientBuilder

        builder = ClientBuilder().http1_only().no_proxy().follow_redirects(False).max_connections(256)
        builder = builder.gzip(False).brotli(False).zstd(False).deflate(False)
        self.client = builder.connect_timeout(datetime.timedelta(seconds=2)).build()

    async def call(self, url: str, body: bytes, timeout_s: float, max_bytes: int) -> tuple[int, bytes]:
        request = (
            self.client.request("POST", url)
            .headers(HEADERS)
            .body_bytes(body)
            .timeout(datetime.timedelta(seconds=timeout_s))
            .streamed_read_buffer_limit(min(2 * MEGABYTE, max_bytes + 1))
            .build_streamed()
        )
        async with request as response:
            reader = response.body_reader
            chunks, read_bytes = [], 0
            while (chunk := await reader.read_chunk()) is not None:
                read_bytes += len(chunk)
                if read_bytes > max_bytes:
                    raise TooLongError
                chunks.append(chunk)
            dict(response.headers)
            return response.status, b"".join(chunks)

    async def close(self) -> None:
        await self.client.close()


def contender(name: str) -> Contender:
    makers: dict[str, Callable[[], Contender]] = {
        "httpx-aiohttp": HttpxAiohttp,
        "aiohttp": Aiohttp,
        "pyreqwest": Pyreqwest,
    }
    return makers[name]()
