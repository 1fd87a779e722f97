"""Small local servers for tests of the HTTP transport, each of which misbehaves in one way, and calls to them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from engine.upstream.http import HttpTransport
from providers.base import UpstreamReply, UpstreamRequest

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 10.0  # a bound on hanging, never waited out by a passing test

# A program of its own that makes one call.
CALL = """
import asyncio, os, sys
from engine.upstream.http import HttpTransport
from providers.base import UpstreamRequest
wire = HttpTransport()
async def call():
    request = UpstreamRequest("POST", os.environ["UPSTREAM_URL"], {}, b"{}")
    return (await wire.send(request, timeout_s=5, max_reply_bytes=100)).body
print(asyncio.run(call()).decode(), flush=True)
"""


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve every connection with `handler`; yield the base URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(handle(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
    return head, await reader.readexactly(int(lengths[0]) if lengths else 0)


def post(url: str, headers: dict[str, str] | None = None) -> UpstreamRequest:
    return UpstreamRequest("POST", url, headers or {"accept-encoding": "identity"}, b'{"input":"x"}')


async def send(
    wire: HttpTransport, url: str, *, timeout_s: float = PATIENCE_S, max_reply_bytes: int = 10_000
) -> UpstreamReply:
    return await wire.send(post(url), timeout_s=timeout_s, max_reply_bytes=max_reply_bytes)


def replying(raw: bytes) -> Handler:
    """Answer each request of a connection with the same bytes, then close when the peer does."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(raw)
            await writer.drain()

    return handler


def replying_once(raw: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(raw)
        await writer.drain()

    return handler


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose accept queue is full, so that connecting to it never ends."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in its own interpreter, from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
