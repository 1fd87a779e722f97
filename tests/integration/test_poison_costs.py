"""What one guilty input costs, as docs/decisions/0008-finding-poison.md says it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from engine.observability.telemetry import UPSTREAM_CALLS
from tests.gateway import CONFIG, close_gateway, open_gateway

REFUSED = '{ status = 400, message = "Invalid input." }'


def upstream_calls() -> float:
    """Calls that this process has made so far, whatever became of them."""
    samples = [sample for metric in UPSTREAM_CALLS.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


@pytest.mark.parametrize("size", [8, 128])
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("answer", [REFUSED, '{ reply = "nan" }', "{ status = 500 }"], ids=["400", "nan", "500"])
async def test_one_guilty_input_costs_what_is_written(data_dir: Path, answer: str, is_known: bool, size: int) -> None:
    assert REFUSED in CONFIG
    gateway = await open_gateway(data_dir, config=CONFIG.replace(REFUSED, answer))
    try:
        if is_known:
            for number in range(60):
                (await gateway.embed(f"warm {number}")).raise_for_status()
        texts = ["poison" if index == size // 3 else f"text {index}" for index in range(size)]
        before = upstream_calls()
        job = await gateway.submit(texts)
        job = await gateway.run(job["id"])
        calls = upstream_calls() - before - 1
    finally:
        await close_gateway(gateway)
    assert (job["counts"]["completed"], job["counts"]["failed"]) == (size - 1, 1)
    if answer == REFUSED:
        assert calls <= 2 * math.log2(size)
    else:
        assert calls <= (25 if is_known else 42)
