"""Byte ranges of npy: a download of a finished job goes on where it was cut, and never mixes two states of the job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine.jobs.reading import results
from engine.jobs.reading.job_rows import get_job
from engine.jobs.reading.results import IndexRange
from tests.gateway import JOBS, WIDTH, Gateway, close_gateway, error_of, open_gateway

TEXTS = [f"text {i}" if i not in (3, 50) else f"poison {i}" for i in range(100)]
HEADER, ROW = 128, 4 * WIDTH
SIZE = HEADER + 100 * ROW


@pytest.fixture
async def small(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, shard_inputs=16, batch_inputs=6)
    yield gateway
    await close_gateway(gateway)


@pytest.fixture
async def job_id(small: Gateway) -> str:
    return str((await small.run((await small.submit(TEXTS))["id"]))["id"])


async def npy(gateway: Gateway, job_id: str, *, query: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.client.get(f"{JOBS}/{job_id}/results", params={"format": "npy"} | (query or {}), headers=sent)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-127", 0, HEADER),
        ("bytes=5-9", 5, 10),
        ("bytes=127-128", 127, 129),
        (f"bytes={HEADER}-{HEADER + ROW - 1}", HEADER, HEADER + ROW),
        (f"bytes={HEADER + 17 * ROW - 1}-{HEADER + 17 * ROW}", HEADER + 17 * ROW - 1, HEADER + 17 * ROW + 1),
        (f"bytes={HEADER + 3 * ROW + 5}-{HEADER + 70 * ROW + 7}", HEADER + 3 * ROW + 5, HEADER + 70 * ROW + 8),
        (f"bytes={HEADER + 3 * ROW + 5}-{HEADER + 3 * ROW + 5}", HEADER + 3 * ROW + 5, HEADER + 3 * ROW + 6),
        ("bytes=100-", 100, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        ("bytes=5-99999999999", 5, SIZE),
    ],
)
async def test_a_range_is_those_bytes_of_the_whole(
    small: Gateway, job_id: str, header: str, start: int, stop: int
) -> None:
    whole = await npy(small, job_id)
    assert len(whole.content) == SIZE and whole.headers["accept-ranges"] == "bytes"
    part = await npy(small, job_id, range=header)
    assert part.status_code == 206
    assert part.content == whole.content[start:stop]
    assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert part.headers["content-length"] == str(stop - start)
    assert part.headers["etag"] == whole.headers["etag"]
    assert part.headers["x-embedmill-complete"] == "true"


async def test_a_download_that_is_cut_again_and_again_is_whole_in_the_end(small: Gateway, job_id: str) -> None:
    whole = await npy(small, job_id, query={"start": 2, "stop": 90})
    tag, got, cuts = whole.headers["etag"], whole.content[:50], 0
    while len(got) < len(whole.content):
        reply = await npy(small, job_id, query={"start": 2, "stop": 90}, range=f"bytes={len(got)}-", if_range=tag)
        assert reply.status_code == 206
        got, cuts = got + reply.content[:777], cuts + 1
    assert got == whole.content and cuts == 8


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
async def test_a_range_outside_is_answered_with_416(small: Gateway, job_id: str, header: str) -> None:
    reply = await npy(small, job_id, range=header)
    assert (reply.status_code, reply.headers["content-range"]) == (416, f"bytes */{SIZE}")
    assert error_of(reply)["param"] == "range"
    assert (await npy(small, job_id, range="bytes=0-0")).status_code == 206  # its place is given back


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "bytes=2-1", "bytes=x-", "items=0-1", ""])
async def test_what_is_no_single_range_is_answered_with_all(small: Gateway, job_id: str, header: str) -> None:
    reply = await npy(small, job_id, range=header)
    assert (reply.status_code, len(reply.content)) == (200, SIZE)


async def test_a_retry_in_between_starts_the_download_anew(small: Gateway, job_id: str) -> None:
    before = await npy(small, job_id)
    tag = before.headers["etag"]
    assert (await npy(small, job_id, range="bytes=0-9", if_range=tag)).status_code == 206
    for other in ('"other"', f"W/{tag}", "Mon, 30 Nov 2026 00:00:00 GMT"):
        assert (await npy(small, job_id, range="bytes=0-9", if_range=other)).status_code == 200
    part = await npy(small, job_id, query={"start": 1}, range="bytes=0-9", if_range=tag)
    assert part.status_code == 200  # of another range of indexes
    (await small.client.post(f"{JOBS}/{job_id}/retry")).raise_for_status()
    running = await npy(small, job_id, range="bytes=0-9", if_range=tag)
    assert (running.status_code, len(running.content)) == (200, SIZE)
    await small.run(job_id)
    after = await npy(small, job_id, range="bytes=0-9", if_range=tag)
    assert after.status_code == 200 and after.headers["etag"] != tag


async def test_a_job_that_runs_has_no_ranges_of_bytes(small: Gateway) -> None:
    job = await small.submit(TEXTS)
    await small.run(job["id"], only=slice(0, 2))
    reply = await npy(small, job["id"], range="bytes=0-9")
    assert (reply.status_code, len(reply.content)) == (200, SIZE)
    assert "etag" not in reply.headers and "accept-ranges" not in reply.headers


async def test_ranges_are_of_what_is_not_compressed(small: Gateway, job_id: str) -> None:
    reply = await npy(small, job_id, range="bytes=0-9", accept_encoding="gzip, identity;q=0")
    assert (reply.status_code, reply.headers["content-encoding"], len(reply.content)) == (200, "gzip", SIZE)
    assert "etag" not in reply.headers and "accept-ranges" not in reply.headers


async def test_every_other_format_ignores_ranges(small: Gateway, job_id: str) -> None:
    for format in ("ndjson", "parquet", "arrow"):
        headers = {"range": "bytes=0-9"}
        reply = await small.client.get(f"{JOBS}/{job_id}/results", params={"format": format}, headers=headers)
        assert reply.status_code == 200 and len(reply.content) > 1000 and "etag" not in reply.headers


async def test_any_cut_of_any_job_is_that_cut_of_the_whole(small: Gateway, job_id: str) -> None:
    """At random, of a job whose pages are many: cut off within a row, at shards, at missing vectors."""
    job = await get_job(small.runtime.store, "default", job_id)
    indexes = IndexRange.of(job, 1, 99)
    database, numbers = small.runtime.database, np.random.default_rng(7)
    pieces = results.npy(database, job, indexes, complete=True, width=WIDTH)
    whole = b"".join([bytes(piece) async for piece in pieces])
    for _ in range(60):
        start, stop = sorted(numbers.choice(len(whole) + 1, size=2, replace=False).tolist())
        part = results.npy_part(database, job, indexes, start=start, stop=stop, complete=True, width=WIDTH)
        assert b"".join([bytes(piece) async for piece in part]) == whole[start:stop], (start, stop)
