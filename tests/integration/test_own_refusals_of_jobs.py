"""A job with a text that always draws a 429: the others get their vectors, and the job says what it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.jobs.render import job_object
from engine.jobs.reading.job_rows import get_job
from models.job import JobStatus
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import Store
from tests.integration.test_provider_wait import opened, play, run_due
from tests.running import run_shard

REFUSED = {"when": {"contains": "number 3 "}, "do": {"status": 429, "retry_after": 1}}


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    store = opened(database_url, tmp_path, batch_inputs=4, upstream_outage_hours=1.0)
    play(store, REFUSED)
    yield store
    await store.close()


async def run_all_shards(store: Store, job_id: str) -> None:
    for shard_id in await store.shard_ids(job_id):
        await store.set_shard(shard_id, next_run_at=0.0)
    await run_due(store, job_id)


@pytest.mark.timeout(90)
async def test_the_others_get_their_vectors_and_the_job_says_what_it_waits_for(store: Store) -> None:
    job_id = await store.submit(30)
    await run_all_shards(store, job_id)
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    assert sorted(snapshot.with_vector) == [index for index in range(30) if index != 3] and not snapshot.with_error
    await run_all_shards(store, job_id)  # the text alone, once more
    body = job_object(await get_job(store.jobs, "p", job_id))
    assert (body["status"], body["waiting_on"]) == ("in_progress", "provider")
    assert "answers 429 (rate limit) to this call, and answers others" in body["waiting"]["message"]
    assert "all others go on" in body["waiting"]["advice"] and body["waiting"]["code"] == "upstream_rate_limited"
    assert body["next_attempt_at"] > body["created_at"]
    assert [shard.attempt for shard in await store.shards(job_id)] == [0, 1, 1]
    play(store)
    await run_all_shards(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED


@pytest.mark.timeout(90)
async def test_other_shards_of_the_job_do_not_wait_for_it(store: Store) -> None:
    job_id = await store.submit(30)
    first = (await store.shard_ids(job_id))[0]
    await run_shard(store.runtime, first, "w")
    now = time.time()
    assert [shard.next_run_at > now for shard in await store.shards(job_id)] == [True, False, False]
    await run_due(store, job_id)
    assert (await store.job(job_id)).completed == 29


@pytest.mark.timeout(90)
async def test_after_as_long_a_wait_as_for_an_outage_it_fails_and_says_why(store: Store) -> None:
    job_id = await store.submit(10)
    await run_all_shards(store, job_id)
    job = await store.job(job_id)
    await store.set_job(job_id, outage=job.outage | {"waits_since": job.outage["waits_since"] - 3601})
    await run_all_shards(store, job_id)
    body = job_object(await get_job(store.jobs, "p", job_id))
    assert (body["status"], body["counts"]["completed"]) == ("completed_with_errors", 9)
    assert [error["code"] for error in body["errors"]] == ["upstream_rate_limited"]


@pytest.mark.timeout(90)
async def test_a_job_says_so_while_a_worker_has_it(store: Store) -> None:
    play(store, {"when": {"contains": "number 3 "}, "do": {"status": 429, "retry_after": 4}})
    job_id = await store.submit(10)
    running = asyncio.create_task(run_due(store, job_id))
    async with asyncio.timeout(40):
        while (body := job_object(await get_job(store.jobs, "p", job_id)))["waiting"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert body["waiting_on"] == "provider" and "answers others" in body["waiting"]["message"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
