"""Claim, heartbeat and release: a lease by the database's clock, and a fence against those who lost it."""

from __future__ import annotations

import asyncio

import pytest

from engine.jobs.control import termination
from engine.jobs.leasing import claim as claims
from engine.jobs.recording.record_outcomes import record
from models.base import db_now, new_id
from models.job import ShardState
from tests.integration.store import Store, landed


async def test_of_many_claimers_one_wins(store: Store) -> None:
    [shard_id] = await store.shard_ids(await store.submit())
    other = store.another()
    claimed = await asyncio.gather(
        *(claims.claim(each.jobs, shard_id, f"w{n}") for n in range(4) for each in (store, other))
    )
    [held] = [one for one in claimed if one is not None]
    assert (held.attempt, held.fence, held.count, held.open_positions()) == (1, 1, 10, list(range(10)))
    await other.close()


async def test_a_claim_carries_what_the_job_says(store: Store) -> None:
    job_id = await store.submit(13, project="q", bad={11})
    held = (await store.claim_all(job_id))[1]
    assert (held.job_id, held.project, held.key_id, held.alias) == (job_id, "q", "key", "test/8")
    assert (held.first_index, held.count, held.width, held.options.user) == (10, 3, 8, "u")
    assert held.open_positions() == [0, 2] and held.inputs[1] is None


async def test_a_live_lease_is_nobody_elses_and_an_expired_one_anybodys(store: Store) -> None:
    [shard_id] = await store.shard_ids(await store.submit())
    first = await store.claim(shard_id)
    assert await claims.claim(store.jobs, shard_id, "second") is None
    await store.expire_lease(shard_id)
    second = await store.claim(shard_id, "second")
    assert (second.attempt, second.fence) == (first.attempt + 1, first.fence + 1)


async def test_a_heartbeat_moves_the_lease_on(store: Store) -> None:
    [shard_id] = await store.shard_ids(job_id := await store.submit())
    held = await store.claim(shard_id)
    await store.set_shard(shard_id, lease_until=db_now() + 1.0)
    before = (await store.shards(job_id))[0].lease_until
    assert await claims.heartbeat(store.jobs, held)
    after = (await store.shards(job_id))[0].lease_until
    assert after - before > store.runtime.settings.lease_s / 2


async def test_a_stale_worker_can_neither_extend_nor_release_nor_let_go(store: Store) -> None:
    [shard_id] = await store.shard_ids(job_id := await store.submit())
    stale = await store.claim(shard_id, "stale")
    await store.expire_lease(shard_id)
    await store.claim(shard_id, "fresh")
    before = await store.shards(job_id)
    assert not await claims.heartbeat(store.jobs, stale)
    await claims.release(store.jobs, stale, delay_s=9.0, counts_as_attempt=True, reason="late", waiting_on="provider")
    await termination.drop_claim(store.jobs, stale)
    assert await store.shards(job_id) == before
    assert (await store.job(job_id)).waiting_on is None


@pytest.mark.parametrize("spent", [True, False])
async def test_a_released_shard_waits_its_delay_and_keeps_or_gives_back_the_attempt(store: Store, spent: bool) -> None:
    [shard_id] = await store.shard_ids(job_id := await store.submit())
    held = await store.claim(shard_id)
    await claims.release(store.jobs, held, delay_s=30.0, counts_as_attempt=spent, reason="busy", waiting_on="quota")
    [shard] = await store.shards(job_id)
    assert (shard.state, shard.attempt, shard.lease_until, shard.last_error) == (
        ShardState.QUEUED,
        int(spent),
        None,
        "busy",
    )
    job = await store.job(job_id)
    assert job.waiting_on == "quota" and job.next_attempt_at > job.created_at + 20
    assert await claims.claim(store.jobs, shard_id, "early") is None
    await store.set_shard(shard_id, next_run_at=db_now())
    assert (await store.claim(shard_id)).attempt == 1 + int(spent)


async def test_a_release_keeps_what_was_recorded(store: Store) -> None:
    [shard_id] = await store.shard_ids(await store.submit())
    held = await store.claim(shard_id)
    await record(store.jobs, held, landed(held, range(4), route=store.routes[0]))
    await claims.release(store.jobs, held, delay_s=0.0, counts_as_attempt=False, reason="budget", waiting_on=None)
    assert (await store.claim(shard_id)).open_positions() == list(range(4, 10))


async def test_there_is_nothing_to_claim_of_what_is_unknown_done_cancelled_or_deleted(store: Store) -> None:
    done, cancelled, deleted = [await store.submit() for _ in range(3)]
    [held] = await store.claim_all(done)
    await record(store.jobs, held, landed(held, route=store.routes[0]))
    await termination.cancel(store.jobs, "p", cancelled)
    await store.set_job(deleted, deleted_at=db_now())
    shard_ids = [new_id("shard"), "not an id", *[(await store.shard_ids(job))[0] for job in (done, cancelled, deleted)]]
    for shard_id in shard_ids:
        assert await claims.claim(store.jobs, shard_id, "w") is None


@pytest.mark.fault(44)
async def test_the_heartbeat_tells_a_worker_that_its_job_was_cancelled(store: Store) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    await termination.cancel(store.jobs, "p", job_id)
    assert not await claims.heartbeat(store.jobs, held)
