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
import statistics
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.transport_cases import IN_FLIGHT, behaviour, cancel_and_leave, cpu
from bench.transport_clients import contender
from bench.transport_upstream import serve

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ("httpx-aiohttp", "aiohttp", "pyreqwest")
LOOPS = ("asyncio", "uvloop")


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
