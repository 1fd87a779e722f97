"""The budget of bytes that requests hold: over it they are refused with the reason, and what was held is free again."""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
import string
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.observability.telemetry import BODY_BYTES, BODY_REFUSALS
from tests.gateway import JOBS, Gateway, close_gateway, error_of, open_gateway
from tests.waiting import until

SYNC = "/v1/embeddings"
SIZE = 200_000  # of a body: two of them are more than a project may hold
LIMITS: dict[str, Any] = {"max_held_bytes": 500_000, "max_held_bytes_per_project": 300_000}
LETTERS = "".join(random.Random(0).choices(string.ascii_letters, k=SIZE))  # of which gzip makes no less than half
TEXTS = [LETTERS[low : low + 10] for low in range(0, SIZE, 16)]
OBJECT = b'{"model":"tiny","input":["%b"]}' % b'","'.join(text.encode() for text in TEXTS[:2_000])
OBJECT = OBJECT[:-1] + b" " * (SIZE - len(OBJECT)) + b"}"
LINES = b"".join(b'"%b"\n' % text.encode() for text in TEXTS)
VARIANTS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "sync": (SYNC, OBJECT, {"content-type": "application/json"}),
    "sync, gzip": (SYNC, gzip.compress(OBJECT), {"content-type": "application/json", "content-encoding": "gzip"}),
    "job": (JOBS, OBJECT, {"content-type": "application/json"}),
    "dry run": (JOBS, OBJECT[:-1] + b',"dry_run":true}', {"content-type": "application/json"}),
}


@pytest.fixture
async def narrow(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, **LIMITS)
    gateway.runtime.bodies._wait_s = 0.05
    yield gateway
    await close_gateway(gateway)


class Held:
    """A body of which all but the last byte has arrived."""

    def __init__(self, gateway: Gateway, path: str, body: bytes, headers: dict[str, str]) -> None:
        self._goes_on = asyncio.Event()
        self._task = asyncio.create_task(gateway.client.post(path, content=self._body(body), headers=headers))

    async def _body(self, body: bytes) -> AsyncIterator[bytes]:
        for low in range(0, len(body) - 1, 50_000):
            yield body[low : min(low + 50_000, len(body) - 1)]
        await self._goes_on.wait()
        yield body[-1:]

    async def end(self) -> httpx.Response:
        self._goes_on.set()
        return await self._task


async def until_held(gateway: Gateway, size: int) -> None:
    await until(lambda: gateway.runtime.bodies.held_bytes >= size)


def refusals(code: str) -> float:
    value: float = BODY_REFUSALS.labels(code)._value.get()
    return value


async def is_free(gateway: Gateway) -> bool:
    return gateway.runtime.bodies.held_bytes == 0 and BODY_BYTES._value.get() == 0


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_a_project_over_its_share_is_told_so_and_no_other(
    narrow: Gateway, caplog: pytest.LogCaptureFixture, name: str, chunked: bool
) -> None:
    path, body, headers = VARIANTS[name]

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    def content() -> Any:
        return pieces() if chunked else body

    held = Held(narrow, SYNC, OBJECT, headers={"content-type": "application/json"})
    await until_held(narrow, SIZE - 1)
    before = refusals("rate_limit_exceeded")
    with caplog.at_level(logging.WARNING):
        refused = await narrow.client.post(path, content=content(), headers=headers)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert "bytes" in error_of(refused)["message"] and float(refused.headers["retry-after"]) > 0
    assert refusals("rate_limit_exceeded") == before + 1
    assert [record for record in caplog.records if "refused for lack of memory" in record.getMessage()]
    other = await narrow.client.post(path, content=content(), headers=headers | await narrow.another_key())
    assert other.is_success, other.text
    assert (await narrow.embed("a small one")).status_code == 200
    assert (await held.end()).status_code == 200
    assert (await narrow.client.post(path, content=content(), headers=headers)).is_success
    assert await is_free(narrow)


async def test_over_the_budget_of_all_a_body_waits_for_room_or_is_refused(narrow: Gateway) -> None:
    json = {"content-type": "application/json"}
    first = Held(narrow, SYNC, OBJECT, json)
    second = Held(narrow, JOBS, OBJECT, json | await narrow.another_key(project="second"))
    await until_held(narrow, 2 * (SIZE - 1))
    refused_before = refusals("overloaded")
    third = json | await narrow.another_key(project="third")
    refused = await narrow.client.post(SYNC, content=OBJECT, headers=third)
    assert refused.status_code == 503 and float(refused.headers["retry-after"]) > 0
    assert refusals(error_of(refused)["code"]) == refused_before + 1
    narrow.runtime.bodies._wait_s = 10.0
    waiters: list[str] = []
    wait = narrow.runtime.bodies.wait

    async def noted_wait(project: str, before: int, after: int) -> None:
        waiters.append(project)
        await wait(project, before, after)

    narrow.runtime.bodies.wait = noted_wait  # type: ignore[method-assign]
    waiting = asyncio.create_task(narrow.client.post(SYNC, content=OBJECT, headers=third))
    await until(lambda: waiters)
    assert not waiting.done()
    assert [(await each.end()).status_code for each in (first, second)] == [200, 202]
    assert (await waiting).status_code == 200
    assert await is_free(narrow)


async def test_of_bodies_that_wait_for_each_other_the_last_is_refused_at_once(narrow: Gateway) -> None:
    narrow.runtime.bodies._wait_s = 60.0
    start, grown = 140_000, asyncio.Barrier(2)

    async def slowly() -> AsyncIterator[bytes]:
        yield OBJECT[:start]
        await grown.wait()
        yield OBJECT[start:]

    headers = {"content-type": "application/json"}
    async with asyncio.timeout(20):
        replies = await asyncio.gather(*(narrow.client.post(SYNC, content=slowly(), headers=headers) for _ in "ab"))
    assert sorted(reply.status_code for reply in replies) == [200, 429]
    assert await is_free(narrow)


async def test_a_streamed_upload_holds_little_and_counts_what_it_holds(narrow: Gateway) -> None:
    held = Held(narrow, f"{JOBS}?model=tiny", LINES, {"content-type": "application/x-ndjson"})
    await until_held(narrow, 60_000)
    assert narrow.runtime.bodies.held_bytes < LIMITS["max_held_bytes_per_project"]
    assert (await held.end()).status_code == 202
    assert await is_free(narrow)


@pytest.mark.parametrize("ends", ["cancelled", "refused"])
async def test_what_was_held_is_free_however_the_request_ends(narrow: Gateway, ends: str) -> None:
    held = Held(narrow, SYNC, OBJECT[:-1] + (b"?" if ends == "refused" else b"}"), {"content-type": "application/json"})
    await until_held(narrow, SIZE - 1)
    if ends == "cancelled":
        held._task.cancel()
        await asyncio.gather(held._task, return_exceptions=True)
    else:
        assert (await held.end()).status_code == 400
    assert await is_free(narrow)
