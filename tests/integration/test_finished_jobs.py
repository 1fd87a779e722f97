"""A job of duplicates that has ended, however it ended, leaves no shard in a queue, and cost few claims."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.corpus.lines import ParsedRecords
from engine.jobs.control import termination
from engine.jobs.execution.lease_keeper import ShardStopped
from engine.jobs.execution.release import release_unfinished
from engine.jobs.leasing import claim as claims
from engine.jobs.recording.record_outcomes import record
from models.embedding import Input
from models.job import FINISHED, JobStatus, ShardState
from providers.fake import fake_tokens
from tests.integration.snapshot import OPEN
from tests.integration.store import Store, landed, stopped_run
from tests.integration.test_duplicates import checked
from tests.integration.test_run import scripted
from tests.running import run_next_shard, sweep
from tests.waiting import until

# The proportions of 60,000 lines of 1,000 texts.
LINES, TEXTS, WORKERS, SHARD = 3_000, 50, 3, 50
PATIENCE_S = 60.0
Ending = Callable[[Store, str], Coroutine[object, object, object]]


def corpus(seed: int) -> list[Input]:
    chance = random.Random(seed)
    return [f"text {chance.randrange(TEXTS)}" for _ in range(LINES)]


async def submitted(store: Store, inputs: Sequence[Input]) -> str:
    """Uploaded piece by piece: the first shards run while the last lines arrive."""
    async with store.receiving() as intake:
        for low in range(0, len(inputs), 500):
            lines = ParsedRecords()
            for item in inputs[low : low + 500]:
                lines.add(item)
            await intake.add(lines)
        await intake.finish(b"fingerprint")
    return intake.job_id


@asynccontextmanager
async def working(store: Store) -> AsyncIterator[None]:
    """Workers that handle messages, two at a time each, and a scheduler; ended with the block."""
    stores = [store.another() for _ in range(WORKERS)]
    queue: asyncio.Queue[None] = asyncio.Queue()

    async def notify(messages: int) -> bool:
        for _ in range(messages - queue.qsize()):
            queue.put_nowait(None)
        return True

    for each in (store, *stores):
        each.notifier.notify = notify  # type: ignore[method-assign]

    async def work(each: Store, name: str) -> None:
        while True:
            await queue.get()
            await run_next_shard(each.runtime, name)

    async def schedule() -> None:
        while True:
            await sweep(store.runtime)
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(work(each, f"w{number}")) for number, each in enumerate(stores * 2)]
    tasks.append(asyncio.create_task(schedule()))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in stores:
            await each.close()


async def ended(store: Store, job_id: str) -> str:
    async def is_over() -> bool:
        return await store.status(job_id) in FINISHED

    await until(is_over, PATIENCE_S, what="the end of the job")
    return await store.status(job_id)


async def states(store: Store, job_id: str) -> set[str]:
    return {shard.state for shard in await store.shards(job_id)}


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_of_a_completed_job_is_queued(database_url: str, tmp_path: Path, seed: int) -> None:
    store = scripted(database_url, tmp_path, "{do = {latency_ms = 100}}", shard_inputs=SHARD)
    inputs = corpus(seed)
    async with working(store):
        job_id = await submitted(store, inputs)
        assert await ended(store, job_id) == JobStatus.COMPLETED
        assert await states(store, job_id) == {ShardState.DONE}
    snapshot = await checked(store, job_id, inputs)
    assert snapshot.tokens_in_ledger == sum(fake_tokens(item) for item in {str(item) for item in inputs})
    # A shard learns once that it has to wait, and for how many others it can be: of 60 few wait for a second time.
    assert (await store.job(job_id)).shard_claims <= 2 * LINES // SHARD
    await store.close()


async def cancel(store: Store, job_id: str) -> None:
    await termination.terminate(store.jobs, job_id, JobStatus.CANCELLED)


async def expire(store: Store, job_id: str) -> None:
    await termination.terminate(store.jobs, job_id, JobStatus.EXPIRED, "job_expired", "too late")


async def fail(store: Store, job_id: str) -> None:
    await termination.terminate(store.jobs, job_id, JobStatus.FAILED, "upload_interrupted", "it broke off")


@pytest.mark.parametrize("end", [cancel, expire, fail])
async def test_nothing_of_a_job_that_ends_early_is_queued(database_url: str, tmp_path: Path, end: Ending) -> None:
    """While shards run, while others wait for them, and while others are queued."""
    store = scripted(database_url, tmp_path, "{do = {latency_ms = 2000}}", shard_inputs=SHARD)
    async with working(store):
        job_id = await submitted(store, corpus(3))

        async def has_begun() -> bool:
            return ShardState.RUNNING in await states(store, job_id)

        async def is_empty() -> bool:
            return not await states(store, job_id) & set(OPEN)

        await until(has_begun, PATIENCE_S, what="a shard that runs")
        await end(store, job_id)
        await ended(store, job_id)
        await until(is_empty, PATIENCE_S, what="an empty queue")
    await checked(store, job_id, corpus(3))
    assert (await store.job(job_id)).open_shards == 0
    await store.close()


async def test_a_job_whose_counter_is_too_low_waits_for_its_last_shard(store: Store) -> None:
    """The counter is a cache: a shard that it does not know of is run all the same, and is not left queued."""
    first, second = await store.claim_all(job_id := await store.submit(20))
    await store.set_shard(second.shard_id, state=ShardState.QUEUED)
    await store.set_job(job_id, open_shards=1)
    await record(store.jobs, first, landed(first, route=store.routes[0]))
    job = await store.job(job_id)
    assert (job.status, job.open_shards) == (JobStatus.IN_PROGRESS, 1)
    held = await store.claim(second.shard_id)
    await record(store.jobs, held, landed(held, route=store.routes[0]))
    assert (await store.status(job_id), await states(store, job_id)) == (JobStatus.COMPLETED, {ShardState.DONE})


async def test_the_sweep_counts_anew_rather_than_end_a_job_with_a_queued_shard(store: Store) -> None:
    first, second = await store.claim_all(job_id := await store.submit(20))
    await record(store.jobs, first, landed(first, route=store.routes[0]))
    await claims.release(store.jobs, second, delay_s=60, counts_as_attempt=False, reason="", waiting_on=None)
    await store.set_job(job_id, open_shards=0)
    await sweep(store.runtime)
    job = await store.job(job_id)
    assert (job.status, job.open_shards) == (JobStatus.IN_PROGRESS, 1)
    await checked(store, job_id, [f"text number {index} " + "x" * (index % 7) for index in range(20)])


async def test_a_shard_that_is_given_back_to_a_job_that_expired_meanwhile_is_closed(store: Store) -> None:
    """Its worker had not heard of it: the sweep is not needed."""
    [held] = await store.claim_all(job_id := await store.submit())
    await expire(store, job_id)
    assert await states(store, job_id) == {ShardState.RUNNING}
    await release_unfinished(stopped_run(store, held, ShardStopped("the worker is stopping")), job_active=True)
    assert await states(store, job_id) == {ShardState.CANCELLED}
    assert (await store.job(job_id)).open_shards == 0
