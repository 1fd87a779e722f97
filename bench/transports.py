"""Which HTTP client carries our calls upstream: CPU a call, and how each behaves when the upstream misbehaves.

    python -m bench.transports [--quick]      (about two minutes; --quick about one)

The fake upstream runs on the last core and the client under test on core 0, over loopback without TLS. Each measurement
runs in a fresh process; CPU rounds alternate between the clients. Needs the packages of every contender:
httpx, httpx-aiohttp, aiohttp, pyreqwest, uvloop, httptools. Results go to bench/results/transports.{json,md}.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import datetime
import importlib.metadata
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ("httpx-aiohttp", "aiohttp", "pyreqwest")
LOOPS = ("asyncio", "uvloop")
IN_FLIGHT = 32
HEADERS = {"authorization": "Bearer sk-0123456789", "content-type": "application/json", "accept-encoding": "identity"}
ENOUGH_BYTES = 64 * 1024 * 1024
MEGABYTE = 1024 * 1024


# --- The fake upstream ------------------------------------------------------------------------------------------------


def embeddings_reply(inputs: int) -> bytes:
    vector = b'{"object":"embedding","index":0,"embedding":"' + b"A" * 8192 + b'"}'
    body = b'{"object":"list","data":[' + b",".join([vector] * inputs) + b'],"usage":{"total_tokens":9}}'
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-ID: req_0123456789\r\n"
        b"X-RateLimit-Remaining-Requests: 9999\r\nX-RateLimit-Remaining-Tokens: 999999\r\n"
    )
    return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def bomb_reply() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(packer.compress(bytes(MEGABYTE)) for _ in range(200)) + packer.flush()
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class FakeUpstream(asyncio.Protocol):
    fixed: ClassVar[dict[bytes, bytes]] = {}
    requests: ClassVar[dict[str, int]] = {}
    hanging = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        import httptools

        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self.parser, self.path, self.seen = httptools.HttpRequestParser(self), b"", 0
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.hangs = False

    def connection_lost(self, error: Exception | None) -> None:
        self.can_write.set()
        FakeUpstream.hanging -= self.hangs

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_message_complete(self) -> None:
        reply = self.fixed.get(self.path)
        if reply is not None:
            self.transport.write(reply)
        if self.path == b"/1" or self.path == b"/128":
            return
        self.seen += 1
        name = self.path.decode()
        self.requests[name] = self.requests.get(name, 0) + 1
        match self.path:
            case b"/hang":
                self.hangs = True
                FakeUpstream.hanging += 1
            case b"/truncated":
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")
                self.transport.close()
            case b"/ask-once":  # the second request on a connection is read whole and then dropped
                self.transport.close() if self.seen > 1 else self.transport.write(OK)
            case b"/close-soon":  # a keep-alive that ends while the client may be reusing it
                self.transport.write(OK)
                asyncio.get_running_loop().call_later(random.random() * 0.002, self.transport.close)
            case b"/drip":
                self.task = asyncio.ensure_future(self.drip())
            case b"/flood-announced" | b"/flood-chunked":
                self.task = asyncio.ensure_future(self.flood(self.path == b"/flood-announced"))
            case b"/counters":
                body = json.dumps({"requests": self.requests, "hanging": FakeUpstream.hanging}).encode()
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async def drip(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not self.transport.is_closing():
            self.transport.write(b"x")
            await asyncio.sleep(0.2)

    async def flood(self, announced: bool) -> None:
        piece = bytes(65536)
        length = b"Content-Length: 209715200" if announced else b"Transfer-Encoding: chunked"
        self.transport.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n")
        for _ in range(3200):
            if self.transport.is_closing():
                return
            self.transport.write(piece if announced else b"10000\r\n" + piece + b"\r\n")
            await self.can_write.wait()
        self.transport.write(b"" if announced else b"0\r\n\r\n")


def serve() -> None:
    import uvloop

    FakeUpstream.fixed.update(
        {
            b"/1": embeddings_reply(1),
            b"/128": embeddings_reply(128),
            b"/ok": OK,
            b"/bomb": bomb_reply(),
            b"/redirect": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /redirected\r\nContent-Length: 2\r\n\r\nok",
            b"/redirected": OK,
        }
    )

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(FakeUpstream, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    uvloop.run(run())


# --- The contenders, each as we would use it: total deadline, bounded body, no redirects, no proxies, no inflating ----


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


# --- What is measured -------------------------------------------------------------------------------------------------


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


def child(what: str, name: str, loop: str, base: str, calls: int) -> None:
    if what != "exit":  # which needs the library's thread to run beside the interpreter's end
        os.sched_setaffinity(0, {0})

    async def run() -> Any:
        client = contender(name)
        if what == "exit":
            await cancel_and_leave(client, base)
            return None
        if what == "behaviour":
            found: Any = await behaviour(client, base)
        else:
            size = 200 if what == "/1" else 20_000
            found = await cpu(client, base, calls, what, b"x" * size)
        await client.close()
        return found

    main: Coroutine[Any, Any, Any] = run()
    if loop == "uvloop":
        import uvloop

        print(json.dumps(uvloop.run(main)))
    else:
        print(json.dumps(asyncio.run(main)))
    if what != "exit":  # the measurement is done; leave without the risk that "exit" measures
        sys.stdout.flush()
        os._exit(0)


# --- The run ----------------------------------------------------------------------------------------------------------


def in_child(what: str, name: str, loop: str, base: str, calls: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.transports", "--child", what, name, loop, base, str(calls)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )


def measured(done: subprocess.CompletedProcess[str]) -> Any:
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def machine() -> dict[str, str]:
    model = next(
        (line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    with suppress(OSError):
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    packages = ("aiohttp", "httpx", "httpx-aiohttp", "pyreqwest", "uvloop", "httptools")
    return {
        "cpu": f"{os.cpu_count()} vCPU {model.strip()}",
        "system": system,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def run(quick: bool) -> dict[str, Any]:
    last_core = (os.cpu_count() or 1) - 1
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.transports", "--serve"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    os.sched_setaffinity(server.pid, {last_core})
    atexit.register(server.kill)
    assert server.stdout is not None
    base = f"http://127.0.0.1:{int(server.stdout.readline())}"
    rounds, exits = (3, 5) if quick else (5, 25)
    runs: dict[str, list[float]] = {}
    for number in range(rounds):
        for path, calls in (("/1", 1600 if quick else 3200), ("/128", 320 if quick else 640)):
            for loop in LOOPS:
                for name in CLIENTS:
                    took_ms = measured(in_child(path, name, loop, base, calls))
                    runs.setdefault(f"{name} {loop} {path}", []).append(took_ms)
        print(f"CPU round {number + 1} of {rounds} done", file=sys.stderr)
    behaviours = {
        f"{name} {loop}": measured(in_child("behaviour", name, loop, base))
        for name in CLIENTS
        for loop in (LOOPS[:1] if quick else LOOPS)
    }
    aborted = {
        name: sum(in_child("exit", name, "asyncio", base).returncode != 0 for _ in range(exits)) for name in CLIENTS
    }
    server.kill()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "rounds": rounds,
        "in_flight": IN_FLIGHT,
        "cpu_ms": {
            key: {"median": round(statistics.median(ms), 4), "low": round(min(ms), 4), "high": round(max(ms), 4)}
            for key, ms in runs.items()
        },
        "behaviour": behaviours,
        "exits": exits,
        "aborted_exits": aborted,
    }


def report(result: dict[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines = [
        "# HTTP clients under the upstream seam",
        "",
        f"{result['date']}; {facts}. Loopback, no TLS; client on one core, fake upstream on the other.",
        f"Median (lowest–highest) of {result['rounds']} alternating runs. Written by `python -m bench.transports`.",
        "",
        f"CPU-ms a call, {result['in_flight']} in flight, reply read whole and bounded:",
        "",
        "| client | loop | 1 × 1536 base64 (8 KB) | 128 × 1536 base64 (1 MB) |",
        "|---|---|---|---|",
    ]
    for loop in LOOPS:
        for name in CLIENTS:
            cells = [result["cpu_ms"][f"{name} {loop} {path}"] for path in ("/1", "/128")]
            shown = " | ".join(f"{cell['median']:.3f} ({cell['low']:.3f}–{cell['high']:.3f})" for cell in cells)
            lines.append(f"| {name} | {loop} | {shown} |")
    columns = list(result["behaviour"])
    lines += ["", "| case | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for case in result["behaviour"][columns[0]]:
        cells = [
            "not within 5 s" if (got := result["behaviour"][column][case]) is None else str(got) for column in columns
        ]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    exits = ", ".join(f"{name} {count}" for name, count in result["aborted_exits"].items())
    lines += ["", f"Processes that aborted at exit after cancelling calls, of {result['exits']}: {exits}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer and shorter rounds, asyncio's loop only for behaviour"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    elif arguments.child:
        what, name, loop, base, calls = arguments.child
        child(what, name, loop, base, int(calls))
    else:
        result = run(arguments.quick)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "transports.json").write_text(json.dumps(result, indent=2) + "\n")
        text = report(result)
        (RESULTS / "transports.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
