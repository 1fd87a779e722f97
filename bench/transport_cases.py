"""What is measured of each HTTP client: CPU a call, and what it does when the upstream misbehaves or we leave."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.transport_clients import Contender

IN_FLIGHT = 32
ENOUGH_BYTES = 64 * 1024 * 1024
MEGABYTE = 1024 * 1024


async def cpu(client: Contender, base: str, calls: int, path: str, body: bytes) -> float:
    """CPU milliseconds a call, all threads, with IN_FLIGHT calls at a time."""

    async def worker(count: int) -> None:
        for _ in range(count):
            await client.call(base + path, body, 30.0, ENOUGH_BYTES)

    await asyncio.gather(*(worker(4) for _ in range(IN_FLIGHT)))
    each = calls // IN_FLIGHT
    started_s = time.process_time()
    await asyncio.gather(*(worker(each) for _ in range(IN_FLIGHT)))
    return (time.process_time() - started_s) / (each * IN_FLIGHT) * 1000


def counters(base: str) -> dict[str, Any]:
    with urllib.request.urlopen(base + "/counters", timeout=5) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    return found


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


async def outcome(call: Awaitable[tuple[int, bytes]]) -> tuple[str, float]:
    """What a call came to, in one word or two, and after how many seconds."""
    started_s = time.monotonic()
    try:
        status, body = await call
        came_to = f"{status}, {len(body)} bytes"
    except Exception as error:  # what a client raises is what is measured
        sent = getattr(error, "sent", None)
        came_to = type(error).__name__ + ("" if sent is None else f" (sent={sent})")
    return came_to, time.monotonic() - started_s


async def eventually(holds: Callable[[], bool], within_s: float) -> float | None:
    started_s = time.monotonic()
    while time.monotonic() - started_s < within_s:
        if holds():
            return time.monotonic() - started_s
        await asyncio.sleep(0.01)
    return None


@contextmanager
def deaf_port() -> Iterator[int]:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def behaviour(client: Contender, base: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    await client.call(base + "/ok", b"{}", 5.0, 100)
    files_before = open_files()

    calls = [asyncio.ensure_future(client.call(base + "/hang", b"{}", 3.0, 100)) for _ in range(100)]
    await eventually(lambda: counters(base)["hanging"] == 100, 2.0)
    started_s = time.monotonic()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    found["cancel 100: tasks ended, s"] = round(time.monotonic() - started_s, 3)
    freed_s = await eventually(lambda: counters(base)["hanging"] == 0, 5.0)
    found["cancel 100: connections dropped, s"] = None if freed_s is None else round(freed_s, 3)
    found["cancel 100: files left open"] = max(0, open_files() - files_before)
    found["cancel 100: works afterwards"] = (await outcome(client.call(base + "/ok", b"{}", 5.0, 100)))[0]

    came_to, took_s = await outcome(client.call(base + "/drip", b"{}", 1.0, 10_000))
    found["slow drip, deadline 1 s"] = f"{came_to} after {took_s:.2f} s"
    for path, label in (("/flood-announced", "200 MB announced"), ("/flood-chunked", "200 MB chunked")):
        reset_peak()
        before_mb = peak_mb()
        came_to, took_s = await outcome(client.call(base + path, b"{}", 10.0, 8 * MEGABYTE))
        found[f"{label}, limit 8 MB"] = f"{came_to}, peak +{max(0.0, peak_mb() - before_mb):.0f} MB"
    reset_peak()
    before_mb = peak_mb()
    came_to, _ = await outcome(client.call(base + "/bomb", b"{}", 10.0, 8 * MEGABYTE))
    found["gzip bomb of 200 MB"] = f"{came_to}, peak +{max(0.0, peak_mb() - before_mb):.0f} MB"
    found["truncated body"] = (await outcome(client.call(base + "/truncated", b"{}", 5.0, 10_000)))[0]
    redirect = (await outcome(client.call(base + "/redirect", b"{}", 5.0, 10_000)))[0]
    found["redirect"] = redirect + (", FOLLOWED" if "/redirected" in counters(base)["requests"] else ", not followed")
    os.environ.update(HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    fresh = type(client)()
    found["proxy in the environment"] = (await outcome(fresh.call(base + "/ok", b"{}", 5.0, 100)))[0]
    await fresh.close()
    with deaf_port() as port:
        came_to, took_s = await outcome(client.call(f"http://127.0.0.1:{port}/", b"{}", 1.0, 100))
        found["connect never answered, deadline 1 s"] = f"{came_to} after {took_s:.2f} s"

    # A connection of its own, so that the second call surely reuses the first one's.
    fresh = type(client)()
    before = counters(base)["requests"].get("/ask-once", 0)
    first = (await outcome(fresh.call(base + "/ask-once", b"{}", 5.0, 100)))[0]
    second = (await outcome(fresh.call(base + "/ask-once", b"{}", 5.0, 100)))[0]
    received = counters(base)["requests"]["/ask-once"] - before
    found["reused connection dropped after the request was read"] = f"{first}; {second}; {received} received of 2"
    await fresh.close()

    before = counters(base)["requests"].get("/close-soon", 0)
    results: list[str] = []

    async def race() -> None:
        for _ in range(50):
            results.append((await outcome(client.call(base + "/close-soon", b"{}", 5.0, 100)))[0])
            await asyncio.sleep(random.random() * 0.002)

    await asyncio.gather(*(race() for _ in range(8)))
    received = counters(base)["requests"]["/close-soon"] - before
    good = sum(result.startswith("200") for result in results)
    found["keep-alive closed under reuse, 400 POSTs"] = (
        f"{good} answered, {len(results) - good} errors, {received} received"
    )
    return found


async def cancel_and_leave(client: Contender, base: str) -> None:
    """Ends the process right after cancelling: library threads that enter Python then can abort it."""
    await asyncio.gather(*(client.call(base + "/128", b"{}", 5.0, ENOUGH_BYTES) for _ in range(64)))
    calls = [asyncio.ensure_future(client.call(base + "/128", b"{}", 5.0, ENOUGH_BYTES)) for _ in range(64)]
    await asyncio.sleep(0.002)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await client.close()
