"""A caller who hangs up during a sync request: the upstream call is cancelled with it, and nothing is left behind."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.system.stack import MODEL, Stack
from tests.waiting import until, wait_until

CALLERS = 12
LATENCY_S = 5.0
ESTABLISHED = "01"


@pytest.fixture
def stack(sqlite_stack: Stack) -> Stack:
    return sqlite_stack


def connections_to_fake(stack: Stack) -> int:
    """Connections that the API holds open to the upstream, as the kernel sees them."""
    inodes = set()
    for descriptor in Path(f"/proc/{stack.processes.pid('api')}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(descriptor.readlink().name.removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    remote = f":{stack.fake_port:04X}"
    return sum(line[2].endswith(remote) and line[3] == ESTABLISHED and line[9] in inodes for line in lines)


def open_files(stack: Stack) -> int:
    return len(list(Path(f"/proc/{stack.processes.pid('api')}/fd").iterdir()))


def sync_inputs(stack: Stack, kind: str = "delivered") -> int:
    counted = f"SELECT coalesce(sum(inputs), 0) FROM usage WHERE lane = 'interactive' AND kind = '{kind}'"
    return int(stack.query(counted)[0][0])


def unanswered_calls(stack: Stack) -> float:
    lines = stack.api.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("embedmill_ambiguous_calls_total{"))


async def call_at_once(stack: Stack, texts: list[str]) -> None:
    async with httpx.AsyncClient(base_url=stack.url, headers=stack.headers, trust_env=False) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/embeddings", json={"model": MODEL, "input": text}) for text in texts)
        )
    for answer in answers:
        answer.raise_for_status()


async def call_and_hang_up(stack: Stack, texts: list[str]) -> None:
    async with httpx.AsyncClient(base_url=stack.url, headers=stack.headers, trust_env=False) as client:
        calls_before = stack.stats()["calls"]
        calls = [
            asyncio.create_task(client.post("/v1/embeddings", json={"model": MODEL, "input": text})) for text in texts
        ]
        await until(lambda: stack.stats()["calls"] >= calls_before + len(texts), every_s=0.02)
        assert stack.stats()["in_flight"] == len(texts)
        assert connections_to_fake(stack) == len(texts)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.fault(38)
def test_hanging_up_cancels_the_upstream_call_and_leaks_nothing(stack: Stack) -> None:
    before = sync_inputs(stack)
    stack.latency(200)
    asyncio.run(call_at_once(stack, [f"warm {number}" for number in range(CALLERS)]))
    wait_until(lambda: sync_inputs(stack) == before + CALLERS, 10, what="the ledger of the first calls")
    files = open_files(stack)
    stack.latency(LATENCY_S * 1000)
    unanswered = unanswered_calls(stack)
    billed, in_ledger, ambiguous = len(stack.bill()), sync_inputs(stack), sync_inputs(stack, "ambiguous")
    asyncio.run(call_and_hang_up(stack, [f"hung up {number}" for number in range(CALLERS)]))
    wait_until(lambda: connections_to_fake(stack) == 0, LATENCY_S / 2, what="the calls' cancellation")
    # A call that leaks leaves one each; a pool of the database's may have grown by a few meanwhile.
    wait_until(lambda: open_files(stack) < files + CALLERS // 2, 10, what="the return of file descriptors")
    # The fake notes for each call that nobody waited for its answer.
    wait_until(lambda: stack.stats()["in_flight"] == 0, LATENCY_S + 5, what="the end of the fake's calls")
    calls = stack.bill()[billed:]
    assert [call["caller_gone"] for call in calls] == [True] * CALLERS
    assert unanswered_calls(stack) - unanswered == CALLERS
    # The provider may bill what it was cut off from: the ledger says so, and nobody is charged for a delivery.
    wait_until(
        lambda: sync_inputs(stack, "ambiguous") == ambiguous + CALLERS, 10, what="the ledger of the cut-off calls"
    )
    stack.latency(0)
    stack.api.post("/v1/embeddings", json={"model": MODEL, "input": "after"}).raise_for_status()
    wait_until(lambda: sync_inputs(stack) > in_ledger, 10, what="the ledger of the call that was answered")
    assert sync_inputs(stack) == in_ledger + 1
    stack.processes.check()
