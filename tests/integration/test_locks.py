"""Who changes many rows locks them by id, shards before jobs: so on PostgreSQL nobody waits in a circle."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import select, text, update

from engine.jobs.control import termination
from engine.jobs.leasing import claim as claims
from engine.jobs.maintenance import sweep
from engine.jobs.recording.record_outcomes import record
from engine.runtime import Runtime
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import JobStatus, Shard, ShardState
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import Store, landed

Verb = Callable[[Runtime, str], Coroutine[Any, Any, object]]
LATE_S = 3600.0
# Each verb, and the state of the shards that it is about.
VERBS: dict[str, tuple[Verb, ShardState]] = {
    "requeue_expired": (lambda runtime, job_id: sweep.requeue_expired(runtime.store), ShardState.RUNNING),
    "close_shards": (lambda runtime, job_id: termination.cancel_idle_shards(runtime.store, job_id), ShardState.QUEUED),
}


@pytest.fixture
def postgres_store(store: Store) -> Store:
    if store.runtime.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time and no row locks")
    return store


@pytest.mark.parametrize("name", VERBS)
async def test_shards_are_locked_by_id(postgres_store: Store, name: str) -> None:
    """Somebody holds the last of them. Whoever goes by id holds the first by then, and waits for the last."""
    store, (verb, state) = postgres_store, VERBS[name]
    job_id = await store.submit(30)
    ids = await store.shard_ids(job_id)
    if name == "close_shards":
        await store.set_job(job_id, status=JobStatus.CANCELLING)
    await _shuffle_rows(store, list(reversed(ids)), state)
    async with store.runtime.database.write() as holder:
        await holder.execute(select(Shard.id).where(Shard.id == ids[-1]).with_for_update())
        waits = asyncio.create_task(verb(store.runtime, job_id))
        while not await _somebody_waits(store):
            assert not waits.done(), "it did not want the shard that somebody holds"
            await asyncio.sleep(0.005)
        free = select(Shard.id).where(Shard.job_id == job_id).order_by(Shard.id).with_for_update(skip_locked=True)
        assert list((await holder.execute(free)).scalars()) == ids[-1:], "it waits for the last with the first unlocked"
    await waits


async def test_verbs_at_once_never_lock_each_other_out(store: Store) -> None:
    """The victim of a deadlock gets StorageUnavailable: nobody may."""
    others = [store.another() for _ in range(3)]
    chance = random.Random(7)
    for _ in range(2 if store.runtime.database.is_sqlite else 5):
        jobs = [await store.submit(60) for _ in range(3)]
        ids = [shard_id for job_id in jobs for shard_id in await store.shard_ids(job_id)]
        await _shuffle_rows(store, chance.sample(ids, len(ids)), ShardState.QUEUED)
        held = [await store.claim(shard_id) for shard_id in ids[::4]]
        todo = [verb(other.runtime, jobs[0]) for other in others for verb, _ in VERBS.values()]
        todo += [termination.cancel(others[0].jobs, "p", jobs[0]), sweep.finish_jobs(others[1].jobs)]
        todo += [record(store.jobs, one, landed(one, route=store.routes[0])) for one in held]
        todo += [claims.heartbeat(store.jobs, one) for one in held]
        chance.shuffle(todo)
        outcomes = await asyncio.gather(*todo, return_exceptions=True)
        assert not [each for each in outcomes if isinstance(each, BaseException)]
        for job_id in jobs:
            (await DatabaseSnapshot.read(store.runtime.database, job_id)).check()
    for other in others:
        await other.close()


async def test_a_deadlock_would_be_seen(postgres_store: Store) -> None:
    """What the test above relies on."""
    store = postgres_store
    one, two = (await store.shard_ids(await store.submit(20)))[:2]
    met = asyncio.Barrier(2)

    async def take(first: str, then: str) -> None:
        async with store.runtime.database.write() as connection:
            for shard_id in (first, then):
                await connection.execute(update(Shard).where(Shard.id == shard_id).values(last_error="x"))
                if shard_id == first:
                    await met.wait()

    outcomes = await asyncio.gather(take(one, two), take(two, one), return_exceptions=True)
    assert [type(each) for each in outcomes if each is not None] == [StorageUnavailable]


async def _somebody_waits(store: Store) -> bool:
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    async with store.runtime.database.read() as connection:
        return bool((await connection.execute(text(waiting))).scalar())


async def _shuffle_rows(store: Store, order: list[str], state: ShardState) -> None:
    """Lay the rows of shards down in this order, all in one state that is long overdue."""
    for shard_id in order:
        late = db_now() - LATE_S
        await store.set_shard(shard_id, state=state, lease_until=late, next_run_at=late)
