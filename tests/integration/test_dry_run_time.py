"""A dry run of the local model, in real time."""

from __future__ import annotations

import time
from pathlib import Path

import orjson

from tests.contract.test_token_counting import LOCAL, corpus
from tests.gateway import Gateway


async def test_a_dry_run_is_faster_than_its_job(gateway: Gateway, tmp_path: Path) -> None:
    lines = b"\n".join(orjson.dumps(f"{text} {number}") for number, text in enumerate(corpus(5, 12_000)))
    began = time.perf_counter()
    told = (await gateway.stream(lines, model=LOCAL, dry_run="true")).json()
    estimated_s = time.perf_counter() - began
    began = time.perf_counter()
    job = (await gateway.stream(lines, model=LOCAL)).json()
    job = await gateway.run(job["id"])
    ran_s = time.perf_counter() - began
    assert told["inputs"] == job["counts"]["completed"] == 12_000
    assert estimated_s < ran_s
    assert abs(told["tokens"] - job["usage"]["total_tokens"]) <= 2 * told["tokens_margin"]
