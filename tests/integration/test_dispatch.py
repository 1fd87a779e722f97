"""Dispatch: whose turn it is, how many at a time, and what happens when no worker gets the message."""

from __future__ import annotations

import asyncio

import pytest

from engine.jobs.control import termination
from engine.jobs.scheduling.dispatch import ANNOUNCED_PER_SLOT, MIN_WINDOW, dispatch
from engine.queue import worker_heartbeats
from models.base import db_now
from models.job import Shard, ShardState
from tests.integration.store import Store


@pytest.fixture
async def quiet(store: Store) -> Store:
    """A store whose notifier fails while jobs are submitted, so that nothing is announced before the test."""
    store.notifier.works = False
    return store


async def owners(store: Store, jobs: dict[str, str]) -> list[str]:
    """The names of the jobs whose shards were announced, in order."""
    by_shard = {shard_id: name for name, job in jobs.items() for shard_id in await store.shard_ids(job)}
    return [by_shard[shard_id] for shard_id in store.notifier.published]


async def count_announced(store: Store) -> int:
    return await store.count(Shard, Shard.state == ShardState.ANNOUNCED)


async def test_a_submitted_job_is_rung_at_once_in_order(store: Store) -> None:
    shard_ids = await store.shard_ids(job_id := await store.submit(30))
    assert store.notifier.published == shard_ids
    assert {shard.state for shard in await store.shards(job_id)} == {ShardState.ANNOUNCED}
    assert (await store.job(job_id)).started_at is None
    await store.claim(shard_ids[0])
    assert (await store.job(job_id)).started_at is not None


async def test_only_a_window_is_rung_and_it_moves_as_shards_are_claimed(store: Store) -> None:
    shard_ids = await store.shard_ids(await store.submit(100))
    assert store.notifier.published == shard_ids[:MIN_WINDOW]
    assert await dispatch(store.runtime) == 0
    for shard_id in shard_ids[:2]:
        await store.claim(shard_id)
    assert await dispatch(store.runtime) == 2
    assert store.notifier.published == shard_ids[: MIN_WINDOW + 2]


async def test_the_window_grows_with_the_workers_alive(quiet: Store) -> None:
    job_id = await quiet.submit(200)
    for number in range(4):
        await worker_heartbeats.heartbeat(quiet.runtime.database, f"w{number}", slots=2)
    quiet.notifier.works = True
    await dispatch(quiet.runtime)
    assert len(quiet.notifier.published) == await count_announced(quiet) == 8 * ANNOUNCED_PER_SLOT
    assert len(await quiet.shards(job_id)) > 8 * ANNOUNCED_PER_SLOT


@pytest.mark.fault(49)
async def test_a_small_job_does_not_wait_behind_a_huge_one(store: Store) -> None:
    huge = await store.submit(200)
    small = await store.submit(20)
    jobs = {"huge": huge, "small": small}
    for shard_id in store.notifier.published[:]:
        await store.claim(shard_id)
    store.notifier.published.clear()
    await dispatch(store.runtime)
    # It has had nothing yet, so all of it goes first: the other has had more than it asks for.
    assert await owners(store, jobs) == ["small", "small", "huge", "huge"]


async def test_projects_take_turns_however_many_jobs_each_has(quiet: Store) -> None:
    jobs = {f"a{number}": await quiet.submit(30, project="a") for number in range(5)}
    jobs["b"] = await quiet.submit(60, project="b")
    quiet.notifier.works = True
    await dispatch(quiet.runtime)
    first = await owners(quiet, jobs)
    assert first == ["a0", "b", "a1", "b"]
    for shard_id in quiet.notifier.published:
        await quiet.claim(shard_id)
    quiet.notifier.published.clear()
    await dispatch(quiet.runtime)
    second = await owners(quiet, jobs)
    # `b` has had as much as all of `a`. Those of `a` that had nothing yet go before those that had.
    assert second == ["a2", "b", "a3", "b"]


@pytest.mark.fault(48)
async def test_two_dispatchers_at_once_ring_nothing_twice(quiet: Store) -> None:
    other = quiet.another()
    await quiet.submit(200)
    await worker_heartbeats.heartbeat(quiet.runtime.database, "w", slots=6)
    quiet.notifier.works = True
    await asyncio.gather(*(dispatch(each.runtime) for _ in range(3) for each in (quiet, other)))
    both = quiet.notifier.published + other.notifier.published
    assert len(both) == len(set(both)) == await count_announced(quiet) == 6 * ANNOUNCED_PER_SLOT
    await other.close()


async def test_a_broker_that_is_away_leaves_the_shards_queued(quiet: Store) -> None:
    job_id = await quiet.submit(30)
    assert {shard.state for shard in await quiet.shards(job_id)} == {ShardState.QUEUED}
    assert await dispatch(quiet.runtime) == 0
    assert await count_announced(quiet) == 0
    quiet.notifier.works = True
    assert await dispatch(quiet.runtime) == 3


async def test_what_is_not_due_or_not_wanted_is_not_rung(quiet: Store) -> None:
    later, cancelled, deleted, due = [await quiet.submit() for _ in range(4)]
    await quiet.set_shard((await quiet.shard_ids(later))[0], next_run_at=db_now() + 60)
    await termination.cancel(quiet.runtime, "p", cancelled)
    await quiet.set_job(deleted, deleted_at=db_now())
    quiet.notifier.works = True
    assert await dispatch(quiet.runtime) == 1
    assert quiet.notifier.published == await quiet.shard_ids(due)
