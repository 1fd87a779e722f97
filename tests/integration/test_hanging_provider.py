"""A provider that takes calls and answers none, over real connections: found out, told, and left within seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api.jobs.render import job_object
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import INTERACTIVE, EmbedRun, embed
from engine.jobs.reading.job_rows import get_job
from engine.planning.packing import pack
from models.embedding import Limits, Options
from models.errors import EmbedmillError, RouteDown
from providers.base import UpstreamRequest
from providers.fake import FakeUpstream
from tests.integration import store as stores
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import Store
from tests.running import run_shard, sweep

INPUTS = 1_600
HANG_S = 14.0
TOLD_WITHIN_S = 10.0
RECOVERED_WITHIN_S = 15.0
SWEEP_S = 1.0


class Server:
    """Answers like OpenAI after a tenth of a second; `mode` says what becomes of calls that arrive meanwhile."""

    def __init__(self) -> None:
        self.mode = "answers"
        self.calls = 0
        self._fake = FakeUpstream(width=stores.WIDTH)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            [length] = [int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:")]
            body = await reader.readexactly(length)
            self.calls += 1
            if self.mode == "hangs":
                await asyncio.Event().wait()
            reply = self._fake.answer(UpstreamRequest("POST", "http://x/v1/embeddings", {}, body), time.time()).reply
            whole = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(reply.body)}\r\n\r\n"
            if self.mode == "body hangs":
                writer.write(whole.encode() + reply.body[: len(reply.body) // 2])
                await writer.drain()
                await asyncio.Event().wait()
            await asyncio.sleep(0.1)
            writer.write(whole.encode() + reply.body)
            await writer.drain()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        tasks: set[asyncio.Task[None]] = set()

        async def kept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self.handle(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.create_task(kept(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def work(store: Store, job_id: str) -> None:
    """A process with one slot. A run that is cancelled releases its shard and returns."""
    this = asyncio.current_task()
    while this is not None and not this.cancelling():
        for shard in await store.shards(job_id):
            if not this.cancelling():
                await run_shard(store.runtime, shard.id, f"w{id(store)}")
        await asyncio.sleep(0.1)


async def keep_sweeping(store: Store) -> None:
    while True:
        await sweep(store.runtime)
        await asyncio.sleep(SWEEP_S)


async def sync_call(store: Store, text: str) -> float:
    """How long a call takes whose caller waits beside the jobs of its process."""
    runtime, began = store.runtime, time.monotonic()
    alias = runtime.alias(stores.MODEL)
    new_run = EmbedRun(
        runtime.upstream, runtime.router, alias, INTERACTIVE, time.monotonic() + 30.0, OutcomeCollector(1, stores.WIDTH)
    )
    await embed(new_run, pack([text], [0], Limits(), stores.WIDTH, Options()), concurrency=1)
    return time.monotonic() - began


async def first_answer(store: Store, text: str) -> float:
    """How long a caller who tries again is refused, and waits, until a process has heard of the end of an outage."""
    began = time.monotonic()
    while True:
        try:
            await sync_call(store, text)
        except RouteDown:
            assert time.monotonic() - began <= 2.0
            await asyncio.sleep(0.1)
        else:
            return time.monotonic() - began


async def told(store: Store, job_id: str) -> dict[str, Any]:
    return job_object(await get_job(store.jobs, "p", job_id))


@pytest.mark.parametrize("mode", ["hangs", "body hangs"])
async def test_a_job_says_that_its_provider_hangs_and_goes_on_when_it_answers(
    database_url: str, tmp_path: Path, mode: str
) -> None:
    server = Server()
    async with server.serving() as url:
        store = Store.open(database_url, tmp_path, shard_inputs=120, batch_inputs=1, shard_concurrency=8)
        config = stores.CONFIG.split(f'[[models."{stores.MODEL}".routes]]\nprovider = "two"')[0]
        (tmp_path / "embedmill.toml").write_text(
            config.replace('kind = "fake"', f'kind = "openai"\nbase_url = "{url}"', 1)
        )
        everyone = [store.another(), store.another()]
        job_id = await store.submit(INPUTS)
        tasks = [asyncio.create_task(work(each, job_id)) for each in everyone]
        tasks.append(asyncio.create_task(keep_sweeping(store)))
        try:
            while (await told(store, job_id))["counts"]["completed"] < INPUTS // 4:  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.1)
            server.mode, began = mode, time.monotonic()
            told_after_s = -1.0
            while time.monotonic() - began < HANG_S:
                job = await told(store, job_id)
                if job["waiting"] is not None and told_after_s < 0:
                    told_after_s = time.monotonic() - began
                    waiting = job["waiting"]
                await asyncio.sleep(0.1)
            assert 0 <= told_after_s <= TOLD_WITHIN_S, told_after_s
            assert job["waiting_on"] == "provider" and job["status"] == "in_progress"
            assert waiting["provider"] == "one" and waiting["code"] == "upstream_timeout" and waiting["since"]
            # Who calls beside is told at once, and does not hang.
            asked_at = time.monotonic()
            with pytest.raises(EmbedmillError):
                await sync_call(everyone[0], "while it hangs")
            refused_after_s = time.monotonic() - asked_at
            assert refused_after_s <= 12.0  # the probe under way, and one of its own: 5 s each at the most
            server.mode, ended, calls = "answers", time.monotonic(), server.calls
            before = (await told(store, job_id))["counts"]["completed"]
            while (now := (await told(store, job_id))["counts"]["completed"]) <= before + 20:
                await asyncio.sleep(0.1)
                assert time.monotonic() - ended <= RECOVERED_WITHIN_S, (before, now)
            recovered_after_s = time.monotonic() - ended
            assert await first_answer(everyone[1], "after it") <= 2.0
            async with asyncio.timeout(RECOVERED_WITHIN_S - recovered_after_s):  # for both processes
                while len({each.worker for each in await store.shards(job_id) if each.state == "running"}) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            async with asyncio.timeout(60):
                while (job := await told(store, job_id))["status"] != "completed":  # noqa: ASYNC110  # no event
                    await asyncio.sleep(0.1)
            print(f"told after {told_after_s:.1f} s, sync told after {refused_after_s:.1f} s,")
            print(f"recovered after {recovered_after_s:.1f} s, ambiguous {job['ambiguous']}, calls {calls}")
            assert job["waiting"] is None and job["counts"]["failed"] == 0
            # What hung in the two processes, and the calls of ours; none of it a second time.
            assert job["ambiguous"]["calls"] <= 2 * (8 + 1) + HANG_S
            snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
            assert len(snapshot.with_vector) == INPUTS and snapshot.with_error == []
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in [*everyone, store]:
                await each.close()
