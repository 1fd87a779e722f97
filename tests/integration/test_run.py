"""Run: a shard from claim to end with a scripted upstream, and the rows that presence and usage leave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from api.jobs.render import job_object
from engine.jobs.control import pause_resume, termination
from engine.jobs.execution.release import release_unfinished
from engine.jobs.reading.job_rows import get_job
from engine.ledger.usage_buffer import UsageBuffer
from engine.queue import worker_heartbeats
from models.base import new_id
from models.errors import DeadlineExceeded
from models.job import JobStatus, ShardState
from models.usage import UsageRecord
from providers.fake import fake_tokens, fake_vectors
from tests.integration import store as stores
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import UPSTREAM_MODEL, WIDTH, Store, stopped_run, text_of
from tests.running import run_shard
from tests.waiting import until


def scripted(database_url: str, folder: Path, *rules: str, **settings: Any) -> Store:
    """A store whose upstream plays these rules."""
    store = Store.open(database_url, folder, **settings)
    config = folder / "embedmill.toml"
    config.write_text(stores.CONFIG.replace('kind = "fake"', f'kind = "fake"\nscript = [{", ".join(rules)}]'))
    return store.another()


async def run_all(store: Store, job_id: str) -> None:
    await asyncio.gather(*(run_shard(store.runtime, shard_id, "w") for shard_id in await store.shard_ids(job_id)))


async def checked(store: Store, job_id: str) -> DatabaseSnapshot:
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check(lambda indexes: fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL))
    return snapshot


async def test_a_job_runs_to_its_end(store: Store) -> None:
    job_id = await store.submit(47, bad={3})
    await asyncio.gather(run_all(store, job_id), run_all(store, job_id))  # every ring comes twice
    snapshot = await checked(store, job_id)
    body = job_object(await get_job(store.jobs, "p", job_id))
    assert body["status"] == JobStatus.COMPLETED_WITH_ERRORS
    assert body["counts"] == {"total": 47, "completed": 46, "failed": 1, "pending": 0}
    billed = sum(fake_tokens(text_of("text", index)) for index in range(47) if index != 3)
    assert body["usage"]["total_tokens"] == snapshot.tokens_in_ledger == billed
    assert (body["progress"], body["eta_seconds"], body["waiting_on"]) == (1.0, 0, None)
    # Nobody called twice for anything: the shards were claimed once each.
    assert [shard.attempt for shard in snapshot.shards] == [1] * 5


async def test_an_input_that_the_provider_refuses_fails_alone(database_url: str, tmp_path: Path) -> None:
    rule = '{when = {contains = "number 13 "}, do = {status = 400}}'
    store = scripted(database_url, tmp_path, rule)
    job_id = await store.submit(20)
    await run_all(store, job_id)
    snapshot = await checked(store, job_id)
    assert snapshot.with_error == [13]
    assert await store.status(job_id) == JobStatus.COMPLETED_WITH_ERRORS
    await store.close()


async def is_running(store: Store, job_id: str) -> bool:
    return bool((await store.shards(job_id))[0].state == ShardState.RUNNING)


@pytest.mark.parametrize("told_s", [120, 3600])
async def test_a_rate_limit_past_the_budget_gives_the_shard_back_unspent(
    database_url: str, tmp_path: Path, told_s: int
) -> None:
    rule = f"{{do = {{status = 429, retry_after = {told_s}}}}}"
    store = scripted(database_url, tmp_path, rule, shard_budget_s=1.0)
    job_id = await store.submit()
    await run_all(store, job_id)
    [shard] = (await checked(store, job_id)).shards
    assert (shard.state, shard.attempt) == (ShardState.QUEUED, 0)
    job = job_object(await get_job(store.jobs, "p", job_id))
    assert job["waiting_on"] == "quota"
    assert 60 < job["next_attempt_at"] - job["created_at"] < 200
    await store.close()


@pytest.mark.parametrize("ended_by", ["budget", "drain"])
async def test_one_batch_that_waits_for_quota_costs_no_attempt_when_its_worker_stops(
    database_url: str, tmp_path: Path, ended_by: str
) -> None:
    """The gate opens within the flight's deadline, so the wait is worth it, until something else ends it."""
    rule = "{do = {status = 429, retry_after = 8}}"
    budget_s = 1.0 if ended_by == "budget" else 30.0
    store = scripted(database_url, tmp_path, rule, shard_budget_s=budget_s, batch_inputs=10)
    job_id = await store.submit()
    router = store.runtime.router
    running = asyncio.create_task(run_all(store, job_id))
    await until(lambda: any(router.state_of(route).limiter.is_paced for route in store.routes))
    if ended_by == "drain":
        store.runtime.draining.set()
    await running
    [shard] = (await checked(store, job_id)).shards
    assert (shard.lease_until, shard.attempt) == (None, 0)
    assert job_object(await get_job(store.jobs, "p", job_id))["waiting_on"] == "quota"
    await store.close()


@pytest.mark.parametrize(("waited", "attempt", "waiting_on"), [(True, 0, "quota"), (False, 1, "provider")])
async def test_time_that_ran_out_before_the_quota_is_not_the_providers_fault(
    store: Store, waited: bool, attempt: int, waiting_on: str
) -> None:
    job_id = await store.submit()
    held = await store.claim((await store.shard_ids(job_id))[0])
    assert held is not None
    held.waits.waiting("slot", 1.0)
    held.waits.end("slot", may_start=not waited)
    await release_unfinished(stopped_run(store, held, DeadlineExceeded("too late")), job_active=True)
    assert [shard.attempt for shard in await store.shards(job_id)] == [attempt]
    assert job_object(await get_job(store.jobs, "p", job_id))["waiting_on"] == waiting_on


async def test_a_job_says_that_it_waits_for_quota_while_a_worker_has_it(database_url: str, tmp_path: Path) -> None:
    store = scripted(database_url, tmp_path, "{times = 1, do = {status = 429, retry_after = 2}}")
    job_id = await store.submit()
    running = asyncio.create_task(run_all(store, job_id))
    async with asyncio.timeout(20):
        while (job := job_object(await get_job(store.jobs, "p", job_id)))["waiting_on"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await running
    assert job["waiting_on"] == "quota" and job["next_attempt_at"] >= job["created_at"]
    assert (await checked(store, job_id)).shards[0].attempt == 1
    job = job_object(await get_job(store.jobs, "p", job_id))
    assert (job["status"], job["waiting_on"]) == (JobStatus.COMPLETED, None)
    await store.close()


@pytest.mark.fault(44)
async def test_a_cancelled_job_makes_no_new_calls(database_url: str, tmp_path: Path) -> None:
    store = scripted(database_url, tmp_path, "{do = {latency_ms = 2500.0}}", shard_concurrency=1)
    job_id = await store.submit()
    running = asyncio.create_task(run_all(store, job_id))
    await until(lambda: is_running(store, job_id))
    async with asyncio.timeout(10):
        await termination.cancel(store.jobs, "p", job_id)
        await running
    snapshot = await checked(store, job_id)
    assert len(snapshot.with_vector) <= 4  # the one batch that was in flight
    await termination.cancel_idle_shards(store.jobs, job_id)
    assert await store.status(job_id) == JobStatus.CANCELLED
    await store.close()


@pytest.mark.parametrize(
    "rule",
    ["{do = {latency_ms = 900.0}}", "{do = {status = 503, retry_after = 2}}"],
    ids=["slow", "to be repeated"],
)
async def test_a_paused_job_makes_no_new_calls(database_url: str, tmp_path: Path, rule: str) -> None:
    """Nothing lands within a second and no heartbeat is due: the worker learns it all the same."""
    store = scripted(database_url, tmp_path, rule, shard_concurrency=1)
    job_id = await store.submit()
    running = asyncio.create_task(run_all(store, job_id))
    await until(lambda: is_running(store, job_id))
    async with asyncio.timeout(20):
        await pause_resume.pause(store.jobs, "p", job_id)
        await running
    snapshot = await checked(store, job_id)
    assert len(snapshot.with_vector) <= 8  # the call that was in flight, and one that began in the second after
    assert [(shard.state, shard.attempt) for shard in snapshot.shards] == [(ShardState.QUEUED, 0)]
    assert await store.status(job_id) == JobStatus.PAUSED
    await store.close()


async def test_presence_counts_the_living(store: Store) -> None:
    database = store.runtime.database
    for worker in ("a", "b", "a"):
        await worker_heartbeats.heartbeat(database, worker, slots=2)
    assert await worker_heartbeats.count_alive(database, 5.0) == 2
    assert await worker_heartbeats.count_alive(database, -1.0) == 0
    await worker_heartbeats.deregister(database, "a")
    await worker_heartbeats.deregister(database, "never seen")
    assert await worker_heartbeats.count_alive(database, 5.0) == 1


def usage_row(tokens: int) -> dict[str, Any]:
    texts = ("project", "key_id", "lane", "alias", "provider", "upstream_model")
    numbers = {"inputs": 1, "calls": 1, "prompt_tokens": tokens, "cost_usd": 0, "estimated": False}
    return dict.fromkeys(texts, "x") | numbers | {"id": new_id("use"), "job_id": None, "end_user": "u"}


@pytest.mark.parametrize("closed", [True, False])
async def test_usage_of_sync_calls_is_written_soon_and_at_the_latest_at_the_end(store: Store, closed: bool) -> None:
    buffer = UsageBuffer(store.runtime.database)
    for tokens in range(450):
        buffer.add([usage_row(tokens)])
    if closed:
        await buffer.close()
    else:

        async def all_rows() -> bool:
            return await store.count(UsageRecord) >= 450

        await until(all_rows)
    async with store.runtime.database.read() as connection:
        written = list((await connection.execute(select(UsageRecord.prompt_tokens))).scalars())
    assert sorted(written) == list(range(450))
    await buffer.close()
    assert await store.count(UsageRecord) == 450
