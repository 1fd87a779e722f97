"""Runs the load generator against a URL, and what a server's processes spent meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from bench.client import BenchError
from bench.measure import CpuMeter, Tree

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the generator."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    mb_per_s: float
    cpu_ms: dict[str, float]  # per request, by tree


def run_load(
    url: str,
    *,
    method: str = "POST",
    body: bytes = b"",
    headers: Mapping[str, str] = {},
    connections: int,
    seconds: float,
    requests: int | None = None,
    trees: list[Tree],
    expect: int = 200,
) -> Run:
    """Load the URL and measure the trees. Raises BenchError when any answer has another status."""
    with tempfile.NamedTemporaryFile(prefix="embedmill-bench-body-") as file:
        file.write(body)
        file.flush()
        command = [sys.executable, "-m", "bench.load", url, "--method", method, "--connections", str(connections)]
        command += [
            "--seconds",
            str(seconds),
            *(["--requests", str(requests)] if requests else []),
            "--body",
            file.name,
        ]
        for name, value in headers.items():
            command += ["--header", f"{name}: {value}"]
        meter = CpuMeter(trees)
        # As the bench itself is kept to a core, so is its child.
        ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False, env=os.environ)
        spent = meter.spent_s()
    if ran.returncode:
        raise BenchError(f"the load generator failed:\n{ran.stderr.decode(errors='replace')}")
    said = orjson.loads(ran.stdout)
    if set(said["statuses"]) != {str(expect)} or said["broken"]:
        raise BenchError(
            f"{method} {url}: statuses {said['statuses']}, {said['broken']} broken; only {expect} was expected"
        )
    count, wall_s = said["requests"], said["wall_s"]
    return Run(
        requests=count,
        requests_per_s=count / wall_s,
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        mb_per_s=said["bytes"] / wall_s / 1e6,
        cpu_ms={name: spent_s / count * 1000 for name, spent_s in spent.items()},
    )
