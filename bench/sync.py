"""POST /v1/embeddings under load: the API on core 0, all else on core 1, beside the fake upstream asked directly."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from bench.client import BenchError, Client
from bench.generator import Run, run_load
from bench.measure import Spread
from bench.stack import MODEL, WIDTH, Stack
from bench.texts import texts
from providers.fake import fake_vectors

UPSTREAM_MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    inputs: int
    encoding: str
    connections: int
    latency_ms: float = 0.0


CASES = (
    Case("1 × 1536 base64", 1, "base64", 32),
    Case("1 × 1536 base64, upstream takes 50 ms, 64 at once", 1, "base64", 64, latency_ms=50),
    Case("128 × 1536 base64", 128, "base64", 8),
    Case("128 × 1536 float", 128, "float", 8),
)


def measure_sync(stack: Stack, *, seconds: float, repetitions: int) -> list[dict[str, Any]]:
    """One row per case: medians of alternating runs through the API and straight to the fake upstream."""
    stack.pin({"api": {0}, "": {1}})
    os.sched_setaffinity(0, {1})
    try:
        return [_measure(stack, case, seconds, repetitions) for case in CASES]
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _measure(stack: Stack, case: Case, seconds: float, repetitions: int) -> dict[str, Any]:
    rules = [{"do": {"latency_ms": case.latency_ms}}] if case.latency_ms else []
    stack.fake.json("PUT", "/__script", rules)
    given: list[str] | str = texts(case.inputs) if case.inputs > 1 else texts(1)[0]
    bodies = {
        model: orjson.dumps({"model": model, "input": given, "encoding_format": case.encoding})
        for model in (MODEL, UPSTREAM_MODEL)
    }
    _check_answer(stack.api, bodies[MODEL], case)
    through: list[Run] = []
    direct: list[Run] = []
    for repetition in range(repetitions + 1):
        for runs, client, model, tree in (
            (through, stack.api, MODEL, "api"),
            (direct, stack.fake, UPSTREAM_MODEL, "fake"),
        ):
            run = run_load(
                f"{client.url}/v1/embeddings",
                body=bodies[model],
                headers={"content-type": "application/json", **client.headers},
                connections=case.connections,
                seconds=seconds if repetition else min(seconds, 1.0),
                trees=[stack.tree(tree)],
            )
            if repetition:  # the first is the warm-up
                runs.append(run)
    stack.fake.json("PUT", "/__script", [])
    api, floor = Spread.of([run.cpu_ms["api"] for run in through]), Spread.of([run.cpu_ms["fake"] for run in direct])
    return {
        "case": case.name,
        "requests_per_s": Spread.of([run.requests_per_s for run in through]),
        "api_cpu_ms": api,
        "p50_ms": Spread.of([run.p50_ms for run in through]),
        "p99_ms": Spread.of([run.p99_ms for run in through]),
        "floor_requests_per_s": Spread.of([run.requests_per_s for run in direct]),
        "floor_cpu_ms": floor,
        "cpu_ratio": api.median / floor.median,
    }


def _check_answer(client: Client, body: bytes, case: Case) -> None:
    """A wrong answer has no speed."""
    headers = {"content-type": "application/json"}
    answer = orjson.loads(client.call("POST", "/v1/embeddings", body, headers)[1])
    given = [item["embedding"] for item in answer["data"]]
    rows = (
        np.frombuffer(b"".join(base64.b64decode(text) for text in given), dtype="<f4").reshape(-1, WIDTH)
        if case.encoding == "base64"
        else np.array(given, dtype=np.float32)
    )
    if rows.tobytes() != fake_vectors(texts(case.inputs), WIDTH, UPSTREAM_MODEL).tobytes():
        raise BenchError(f"{case.name}: the vectors are not the upstream's")
