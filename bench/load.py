"""The load generator, a process of its own: callers that each send their next request when they have their answer.

Raw sockets and a C parser, so that it takes little of the core that it shares with the fake upstream. It prints one
JSON object: requests, wall seconds, statuses, bytes, latency percentiles and its own CPU-seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from engine.process.allocator_tuning import keep_large_buffers


class Load:
    """What all callers share: the request, when to stop, and what came back."""

    def __init__(self, request: bytes, seconds: float, max_requests: int | None) -> None:
        self.request = request
        self.seconds = seconds
        self.left = max_requests
        self.statuses: dict[int, int] = {}
        self.latencies_ms: list[float] = []
        self.bytes = 0
        self.open_callers = 0
        self.deadline = 0.0
        self.broken = 0
        self.finished = asyncio.Event()

    def may_send(self) -> bool:
        if self.left is not None:
            self.left -= 1
            return self.left >= 0
        return time.perf_counter() < self.deadline


class Caller(asyncio.Protocol):
    """One connection with one request in flight."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.sent_at = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.load.open_callers += 1

    def start(self) -> None:
        """Send the next request, or hang up when there is none left."""
        if not self.load.may_send():
            self.transport.close()
            return
        self.parser = httptools.HttpResponseParser(self)
        self.busy = True
        self.sent_at = time.perf_counter()
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.load.bytes += len(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        load = self.load
        load.latencies_ms.append((time.perf_counter() - self.sent_at) * 1000)
        status = self.parser.get_status_code()
        load.statuses[status] = load.statuses.get(status, 0) + 1
        self.busy = False
        self.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.broken += self.busy
        self.load.open_callers -= 1
        if not self.load.open_callers:
            self.load.finished.set()


async def generate(load: Load, host: str, port: int, connections: int) -> dict[str, object]:
    """Run the callers to the end and say what they saw."""
    loop = asyncio.get_running_loop()
    callers = [(await loop.create_connection(lambda: Caller(load), host, port))[1] for _ in range(connections)]
    cpu_s, started = time.process_time(), time.perf_counter()
    load.deadline = started + load.seconds
    for caller in callers:
        caller.start()
    await load.finished.wait()
    wall_s = time.perf_counter() - started
    ranked = sorted(load.latencies_ms)
    return {
        "requests": len(ranked),
        "wall_s": wall_s,
        "cpu_s": time.process_time() - cpu_s,
        "statuses": {str(status): count for status, count in load.statuses.items()},
        "broken": load.broken,
        "bytes": load.bytes,
        "p50_ms": ranked[len(ranked) // 2] if ranked else None,
        "p99_ms": ranked[len(ranked) * 99 // 100] if ranked else None,
    }


def raw_request(method: str, url: str, headers: dict[str, str], body: bytes) -> bytes:
    """A whole HTTP/1.1 request as bytes."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = {"host": parts.netloc, "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--method", default="POST")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--requests", type=int, help="instead of --seconds")
    parser.add_argument("--body", type=Path, help="file that holds the request body")
    parser.add_argument("--header", action="append", default=[], metavar="NAME: VALUE")
    given = parser.parse_args()
    keep_large_buffers()
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in given.header)}
    request = raw_request(given.method, given.url, headers, given.body.read_bytes() if given.body else b"")
    parts = urlsplit(given.url)
    load = Load(request, given.seconds, given.requests)
    result = uvloop.run(generate(load, parts.hostname or "127.0.0.1", parts.port or 80, given.connections))
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
