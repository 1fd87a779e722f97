"""Give way: a job that comes while every worker is busy with a slow shard is let in by one of them, and only by one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from api.jobs.render import job_object
from engine.jobs.execution.preemption import choose_preemptor
from engine.jobs.execution.watch import STARVED_AFTER_S
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.reading.job_rows import get_job
from engine.jobs.scheduling import fair_share
from models.base import db_now
from models.job import JobStatus, ShardState
from providers.fake import fake_vectors
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import UPSTREAM_MODEL, WIDTH, Store, text_of
from tests.integration.test_run import scripted
from tests.running import run_next_shard
from tests.waiting import until

SLOW = '{when = {contains = "slow"}, do = {latency_ms = 300.0}}'


async def is_running(store: Store, job_id: str, shards: int) -> bool:
    return [shard.state for shard in await store.shards(job_id)].count(ShardState.RUNNING) == shards


async def is_completed(store: Store, job_id: str) -> bool:
    return await store.status(job_id) == JobStatus.COMPLETED


async def preemptor_of(store: Store, running: ClaimedShard, ran_s: float) -> str | None:
    async with store.runtime.database.read() as connection:
        positions, _ = await fair_share.watch(connection, [running.shard_id], 8, STARVED_AFTER_S)
    return choose_preemptor(positions, running.shard_id, running.tokens, ran_s=ran_s, unsent_tokens=0)


async def test_one_of_two_busy_workers_lets_a_small_job_in(database_url: str, tmp_path: Path) -> None:
    store = scripted(database_url, tmp_path, SLOW, shard_inputs=200, shard_concurrency=2)
    large = await store.submit(600, tag="slow")
    workers = [asyncio.create_task(run_next_shard(store.runtime)) for number in range(2)]
    await until(lambda: is_running(store, large, 2))
    small = await store.submit(10, tag="text")
    await until(lambda: is_completed(store, small))
    job = await store.job(small)
    # Alone, the two shards would take half a minute. The mark, 5 s, is for a machine that does nothing else.
    assert 0.5 <= job.finished_at - job.created_at < 15.0

    # One of the two ends, its shard goes back as it is, and costs no attempt; the other goes on.
    done, going_on = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(going_on)) == (1, 1)
    shards = await store.shards(large)
    assert sorted(shard.state for shard in shards)[-1:] == [ShardState.RUNNING]
    [given_back] = [shard for shard in shards if shard.last_error]
    assert (given_back.attempt, given_back.lease_until) == (0, None) and any(given_back.outcome_bitmap)

    for worker in going_on:
        worker.cancel()
    await asyncio.gather(*going_on, return_exceptions=True)
    snapshot = await DatabaseSnapshot.read(store.runtime.database, large)
    snapshot.check(lambda indexes: fake_vectors([text_of("slow", index) for index in indexes], WIDTH, UPSTREAM_MODEL))
    await store.close()


async def test_a_job_that_gave_way_says_so_until_its_turn(database_url: str, tmp_path: Path) -> None:
    store = scripted(database_url, tmp_path, SLOW, shard_inputs=200, shard_concurrency=1)
    large = await store.submit(200, tag="slow")
    worker = asyncio.create_task(run_next_shard(store.runtime))
    await until(lambda: is_running(store, large, 1))
    await store.submit(10)
    await worker
    body = job_object(await get_job(store.jobs, "p", large))
    assert (body["waiting_on"], body["next_attempt_at"]) == ("fairness", None)
    await store.claim((await store.shard_ids(large))[0])
    assert job_object(await get_job(store.jobs, "p", large))["waiting_on"] is None
    await store.close()


@pytest.mark.parametrize(
    ("project", "has_started", "min_slice_s"),
    [("q", True, 1.0), ("q", False, 1.0), ("p", False, 1.0), ("p", True, 10.0)],
    ids=["project", "project, new", "job, new", "job"],
)
async def test_how_long_a_shard_runs_before_another_preempts_it(
    store: Store, project: str, has_started: bool, min_slice_s: float
) -> None:
    """Another project waits a second; another job of the project waits ten, but for its first shard only one."""
    [later] = await store.shard_ids(await store.submit(10))
    await store.set_shard(later, next_run_at=db_now() + 60)
    [running] = await store.claim_all(await store.submit(10, tag="long " * 50))
    other = await store.submit(20, project=project)
    shard_ids = await store.shard_ids(other)
    if has_started:
        await store.claim(shard_ids.pop(0))
    for shard_id in shard_ids:
        await store.set_shard(shard_id, next_run_at=db_now() - 0.6)
    assert await preemptor_of(store, running, min_slice_s - 0.1) is None
    assert await preemptor_of(store, running, min_slice_s + 0.1) in shard_ids


async def test_a_shard_is_starved_when_it_is_due_for_half_a_second(store: Store) -> None:
    [running] = await store.claim_all(await store.submit(10, tag="long " * 50))
    [waiting] = await store.shard_ids(await store.submit(10, project="q"))
    await store.set_shard(waiting, next_run_at=db_now() - 0.2)
    assert await preemptor_of(store, running, 60.0) is None
    await store.set_shard(waiting, next_run_at=db_now() - 0.6)
    assert await preemptor_of(store, running, 60.0) == waiting
