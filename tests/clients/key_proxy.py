"""A reverse proxy for test suites that have an API key written into them, and ids of objects that do not exist."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

from tests.clients.placeholders import Placeholders

MAX_BODY_BYTES = 64 * 1024 * 1024
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "content-encoding"}


class KeyProxy:
    """Passes each request on to `target` (scheme and host) with another key; `url` is where it listens.

    With `hook`, the URL of a receiver of webhooks, placeholders are replaced (tests/clients/placeholders.py).
    """

    def __init__(self, target: str, key: str, *, hook: str | None = None) -> None:
        self._target, self._hook = target, hook
        self._authorization = f"Bearer {key}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _start(self) -> int:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        if self._hook is not None:
            headers = {"Authorization": self._authorization, "Accept-Encoding": "identity"}
            self._placeholders = Placeholders(self._session, f"{self._target}/v1", headers, self._hook)
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        headers["Authorization"] = self._authorization
        path, body = request.raw_path, await request.read()
        if self._hook is not None:
            path, body = await self._placeholders.replace(request.method, path, body)
        async with self._session.request(
            request.method,
            URL(f"{self._target}{path}", encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
        ) as reply:
            kept = {name: value for name, value in reply.headers.items() if name.lower() not in HOP_BY_HOP}
            if "content-encoding" in reply.headers:
                kept["content-encoding"] = reply.headers["content-encoding"]
            return web.Response(status=reply.status, headers=kept, body=await reply.read())
