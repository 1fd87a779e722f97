"""Who kills workers is found, and who only was there when workers were killed is not condemned for it."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest
from sqlalchemy import update

from engine.jobs.control.termination import cancel
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.maintenance.crashing_inputs import is_beyond_chance
from engine.jobs.recording.record_outcomes import record
from models.base import db_now
from models.job import JobStatus, Shard, ShardState
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import Store, landed
from tests.running import sweep


async def no_pauses(store: Store, job_id: str) -> None:
    """Let the time pass that queued shards wait."""
    async with store.runtime.database.write() as connection:
        waiting = update(Shard).where(Shard.job_id == job_id, Shard.state == ShardState.QUEUED)
        await connection.execute(waiting.values(next_run_at=db_now() - 1))


async def others_run(store: Store, count: int) -> None:
    """Runs of another project's job, all of which live."""
    job_id = await store.submit(10 * count, project="other")
    for held in await store.claim_all(job_id):
        await record(store.jobs, held, landed(held, route=store.routes[0]))


async def die(store: Store, held: ClaimedShard) -> None:
    await store.expire_lease(held.shard_id)


async def live(store: Store, held: ClaimedShard) -> None:
    await record(store.jobs, held, landed(held, route=store.routes[0]))


async def open_shards(store: Store, job_id: str) -> list[Shard]:
    await no_pauses(store, job_id)
    return [
        shard
        for shard in await store.shards(job_id)
        if shard.state == ShardState.QUEUED and shard.worker_crashes < shard.crash_limit
    ]


@pytest.mark.parametrize(
    ("deaths", "died", "lived", "verdict"),
    [
        (2, 0, 10_000, False),  # too few, whatever the others did
        (3, 0, 98, False),  # (1/100)^3 is not less than 10^-6
        (3, 0, 99, True),
        (5, 0, 10, False),
        (6, 0, 10, True),
        (39, 0, 0, False),  # nothing lived elsewhere: the machine may be at fault
        (40, 0, 0, True),
        (12, 20, 20, False),  # half of all runs die
        (20, 20, 20, True),
        (39, 33, 3, False),
    ],
)
def test_deaths_condemn_when_chance_does_not_explain_them(deaths: int, died: int, lived: int, verdict: bool) -> None:
    assert is_beyond_chance(deaths, died, lived) is verdict


@pytest.mark.parametrize("seed", range(2))
async def test_thirty_three_kills_of_whoever_runs_condemn_nobody(store: Store, seed: int) -> None:
    """Four shards of ten, two workers, one of which is killed each time; then calm. Fixed seeds: no chance is left."""
    chance, kills = random.Random(seed), 33
    job_id = await store.submit(40)
    for _ in range(300):
        if await store.status(job_id) != JobStatus.IN_PROGRESS:
            break
        await sweep(store.runtime)
        running = [await store.claim(shard.id) for shard in (await open_shards(store, job_id))[:2]]
        if not running:
            continue
        victim = chance.choice(running) if kills else None
        for held in running:
            if held is victim:
                kills -= 1
                await die(store, held)
            elif kills > 5:  # it keeps a little, and is told to go
                await record(store.jobs, held, landed(held, held.open_positions()[:1], route=store.routes[0]))
                await claims.release(store.jobs, held, delay_s=0, counts_as_attempt=False, reason="", waiting_on=None)
            else:
                await live(store, held)
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    assert snapshot.with_error == [] and await store.status(job_id) == JobStatus.COMPLETED


async def test_a_burst_that_kills_every_run_condemns_nobody(store: Store) -> None:
    """Thirty-three claims in a row die, whatever they are of; before it, all was calm for long."""
    await others_run(store, 20)
    job_id = await store.submit(30)
    for _ in range(33):
        await sweep(store.runtime)
        shards = await open_shards(store, job_id)
        if shards:
            await die(store, await store.claim(shards[0].id))
    for _ in range(40):
        if await store.status(job_id) != JobStatus.IN_PROGRESS:
            break
        await sweep(store.runtime)
        for shard in await open_shards(store, job_id):
            await live(store, await store.claim(shard.id))
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    assert snapshot.with_error == [] and await store.status(job_id) == JobStatus.COMPLETED


async def test_two_inputs_that_kill_are_both_found(store: Store) -> None:
    offending_position = {4, 25}
    job_id = await store.submit(30)
    for _ in range(150):
        if await store.status(job_id) != JobStatus.IN_PROGRESS:
            break
        await sweep(store.runtime)
        await others_run(store, 5)
        for shard in await open_shards(store, job_id):
            held = await store.claim(shard.id)
            kills = offending_position & {held.index(position) for position in held.open_positions()}
            await (die if kills else live)(store, held)
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    assert sorted(snapshot.with_error) == sorted(offending_position) and {row.code for row in snapshot.failures} == {
        "worker_lost"
    }


async def test_deaths_spend_no_attempts(store: Store) -> None:
    job_id = await store.submit(10)
    [shard_id] = await store.shard_ids(job_id)
    for _ in range(2):
        await die(store, await store.claim(shard_id))
        await sweep(store.runtime)
    held = await store.claim(shard_id)
    assert (held.attempt, held.fence) == (1, 3)
    job = await store.job(job_id)
    assert (job.shard_claims, job.worker_crashes) == (3, 2)


@pytest.mark.parametrize("end", ["done", "released", "lost", "cancelled", "cancelled while queued"])
async def test_a_shard_that_does_not_run_holds_no_reservation(store: Store, end: str) -> None:
    job_id = await store.submit(10)
    [held] = await store.claim_all(job_id)
    await store.set_shard(held.shard_id, reserved_usd=Decimal("0.5"))
    if end == "done":
        await live(store, held)
    elif end == "released":
        await claims.release(store.jobs, held, delay_s=0, counts_as_attempt=False, reason="", waiting_on=None)
    elif end == "lost":
        await die(store, held)
        await sweep(store.runtime)
    else:
        if end == "cancelled while queued":
            await store.set_shard(held.shard_id, state=ShardState.QUEUED)
        await cancel(store.jobs, "p", job_id)
        await die(store, held)
        for _ in range(3):
            await sweep(store.runtime)
    [shard] = await store.shards(job_id)
    assert shard.state != ShardState.RUNNING and shard.reserved_usd is None
