"""A client that hangs up in its body costs nothing more: what is in hand of the body is dropped, not ingested."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import func, select

from api.http.request_body import IS_CUT_OFF
from engine.corpus.parser import STEP_BYTES
from models.job import Job
from tests.contract.conftest import Server
from tests.gateway import JOBS, Gateway
from tests.waiting import wait_until

LINE = b'"' + b"a text that packs well " * 3 + b'"\n'
LINES = 200_000
PACKED = gzip.compress(LINE * LINES, 9)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close that is a reset


async def post(gateway: Gateway, path: str, body: bytes, is_cut_off: Callable[[], bool], encoding: str) -> int:
    """One POST over bare ASGI whose body does not end; the server says by `is_cut_off` whether its client is there."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": body, "more_body": True},
        {"type": "http.disconnect"},
    ]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    kind = "application/json" if path == "/v1/embeddings" else "application/x-ndjson"
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": kind, "content-encoding": encoding}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"model=tiny" if path == JOBS else b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
        IS_CUT_OFF: is_cut_off,
    }
    await gateway.app(scope, receive, send)
    return statuses[0]


async def stored_inputs(gateway: Gateway) -> int:
    async with gateway.runtime.database.read() as connection:
        return int((await connection.execute(select(func.coalesce(func.sum(Job.ingested), 0)))).scalar_one())


@pytest.mark.parametrize(("body", "encoding"), [(PACKED, "gzip"), (LINE * LINES, "identity")])
@pytest.mark.parametrize("steps", [0, 40])
async def test_ingestion_stops_at_the_next_step(gateway: Gateway, body: bytes, encoding: str, steps: int) -> None:
    looks = 0

    def is_cut_off() -> bool:
        nonlocal looks
        looks += 1
        return looks > steps

    assert await post(gateway, JOBS, body, is_cut_off, encoding) == 499
    assert await stored_inputs(gateway) <= steps * STEP_BYTES // len(LINE) + 1
    assert looks == steps + 1


async def test_unpacking_of_a_json_body_stops_too(gateway: Gateway) -> None:
    looks: list[int] = []

    def is_cut_off() -> bool:
        looks.append(1)
        return True

    body = gzip.compress(b'{"model": "tiny", "input": "' + b"a " * 4_000_000)
    assert await post(gateway, "/v1/embeddings", body, is_cut_off, "gzip") == 499
    assert len(looks) == 1


def jobs_of(server: Server) -> dict[str, dict[str, Any]]:
    reply = httpx.get(f"{server.url}{JOBS}", headers={"authorization": f"Bearer {server.key}"}, params={"limit": 100})
    return {job["id"]: job for job in reply.json()["data"]}


async def test_a_real_connection_that_is_reset_ends_the_ingestion_of_what_was_sent(server: Server) -> None:
    before = await asyncio.to_thread(jobs_of, server)
    address = urlsplit(server.url)
    head = (
        f"POST {JOBS}?model=tiny HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {server.key}\r\n"
        f"content-type: application/x-ndjson\r\ncontent-encoding: gzip\r\ncontent-length: {len(PACKED) + 1}\r\n\r\n"
    )

    def arrived() -> dict[str, Any] | None:
        found = [job for job_id, job in jobs_of(server).items() if job_id not in before]
        return found[0] if found else None

    def hang_up_in_the_middle() -> dict[str, Any] | None:
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(head.encode() + PACKED)
            wait_until(arrived, 60.0, every_s=0.005, what="the job of the upload")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        wait_until(
            lambda: (job := arrived()) is not None and job["status"] == "failed", 60.0, what="the end of the job"
        )
        return arrived()

    job = await asyncio.to_thread(hang_up_in_the_middle)
    assert job is not None and job["status"] == "failed"
    counts = job["counts"]
    # All but the last shard, which is not full, would have been stored.
    assert 0 < counts["pending"] + counts["completed"] + counts["failed"] < LINES * 3 // 4
