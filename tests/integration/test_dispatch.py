"""Dispatch: how many messages wait in the queue, in which order shards are claimed, and what is not claimed."""

from __future__ import annotations

import asyncio

import pytest

from engine.jobs.control import termination
from engine.jobs.leasing import claim as claims
from engine.jobs.scheduling.dispatch import MESSAGES_PER_SLOT, MIN_MESSAGES
from engine.queue import worker_heartbeats
from models.base import db_now
from models.job import Shard, ShardState
from tests.integration.store import Store
from tests.running import dispatch


async def order_of_claims(store: Store, jobs: dict[str, str], count: int) -> list[str]:
    """The names of the jobs whose shards are claimed, in order."""
    names = {job_id: name for name, job_id in jobs.items()}
    claimed = [await claims.claim_next(store.jobs, "w") for _ in range(count)]
    return [names[shard.job_id] for shard in claimed if shard is not None]


async def test_a_submitted_job_is_dispatched_at_once(store: Store) -> None:
    shard_ids = await store.shard_ids(job_id := await store.submit(30))
    assert store.notifier.queued == len(shard_ids) == 3
    assert (await store.job(job_id)).started_at is None
    claimed = [await claims.claim_next(store.jobs, "w") for _ in range(4)]
    assert [shard and shard.shard_id for shard in claimed] == [*shard_ids, None]
    assert (await store.job(job_id)).started_at is not None


async def test_no_more_messages_than_the_live_workers_can_use(store: Store) -> None:
    await store.submit(200)
    assert store.notifier.queued == await dispatch(store.runtime) == MIN_MESSAGES
    for number in range(4):
        await worker_heartbeats.heartbeat(store.runtime.database, f"w{number}", slots=2)
    assert await dispatch(store.runtime) == store.notifier.queued == 8 * MESSAGES_PER_SLOT


async def test_no_messages_without_a_due_shard(store: Store) -> None:
    job_id = await store.submit(20)
    store.notifier.queued = 0
    for shard_id in await store.shard_ids(job_id):
        await store.claim(shard_id)
    assert await dispatch(store.runtime) == store.notifier.queued == 0


@pytest.mark.fault(49)
async def test_a_small_job_does_not_wait_behind_a_huge_one(store: Store) -> None:
    jobs = {"huge": await store.submit(200)}
    await order_of_claims(store, jobs, 4)
    jobs["small"] = await store.submit(20)
    # It has had nothing yet, so all of it goes first: the other has had more than it asks for.
    assert await order_of_claims(store, jobs, 4) == ["small", "small", "huge", "huge"]


async def test_projects_take_turns_however_many_jobs_each_has(store: Store) -> None:
    jobs = {f"a{number}": await store.submit(30, project="a") for number in range(5)}
    jobs["b"] = await store.submit(60, project="b")
    assert await order_of_claims(store, jobs, 4) == ["a0", "b", "a1", "b"]
    # `b` has had as much as all of `a`. Those of `a` that had nothing yet go before those that had.
    assert await order_of_claims(store, jobs, 4) == ["a2", "b", "a3", "b"]


@pytest.mark.fault(48)
async def test_any_number_of_dispatchers_at_once_do_no_harm(store: Store) -> None:
    other = store.another()
    await store.submit(200)
    await worker_heartbeats.heartbeat(store.runtime.database, "w", slots=6)
    await asyncio.gather(*(dispatch(each.runtime) for _ in range(3) for each in (store, other)))
    assert store.notifier.queued == other.notifier.queued == 6 * MESSAGES_PER_SLOT
    assert await store.count(Shard, Shard.state == ShardState.QUEUED) == 20
    await other.close()


async def test_a_broker_that_is_away_leaves_the_shards_queued(store: Store) -> None:
    store.notifier.works = False
    job_id = await store.submit(30)
    assert {shard.state for shard in await store.shards(job_id)} == {ShardState.QUEUED}
    assert await dispatch(store.runtime) == 0
    store.notifier.works = True
    assert await dispatch(store.runtime) == 3


async def test_what_is_not_due_or_has_ended_is_neither_dispatched_nor_claimed(store: Store) -> None:
    later, cancelled, deleted, due = [await store.submit() for _ in range(4)]
    await store.set_shard((await store.shard_ids(later))[0], next_run_at=db_now() + 60)
    await termination.cancel(store.jobs, "p", cancelled)
    await store.set_job(deleted, deleted_at=db_now())
    assert await dispatch(store.runtime) == 1
    claimed = [await claims.claim_next(store.jobs, "w") for _ in range(3)]
    assert [shard and shard.job_id for shard in claimed] == [due, None, None]
