"""Halving: however it is cut no index is lost or doubled, late results find their place, the guilty input is found."""

from __future__ import annotations

import random
from math import ceil, log2

import orjson
import pytest

from engine.jobs.ingest import job_intake
from engine.jobs.leasing import claim as claims
from engine.jobs.reading import results
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.record_outcomes import record
from engine.jobs.recording.split_shard import split_shard
from models.job import Job, JobStatus, Shard, ShardState
from providers.fake import fake_vectors
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import UPSTREAM_MODEL, WIDTH, Store, landed, refused, text_of
from tests.integration.test_crashes import no_pauses, others_run
from tests.integration.test_submit import lines_of
from tests.running import sweep


async def checked(store: Store, job_id: str) -> DatabaseSnapshot:
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check(lambda indexes: fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL))
    covered = [
        index for shard in snapshot.shards for index in range(shard.first_index, shard.first_index + shard.count)
    ]
    assert snapshot.job is not None and sorted(covered) == list(range(snapshot.job.ingested))
    return snapshot


async def queue_again(store: Store, shard_id: str) -> None:
    await store.set_shard(shard_id, state=ShardState.QUEUED, lease_until=None)


async def lines(store: Store, job_id: str) -> list[dict[str, object]]:
    job = await get_job(store.jobs, "p", job_id)
    whole = results.IndexRange.of(job, None, None)
    told = b"".join([piece async for piece in results.ndjson(store.database, store.work, job, whole, "float")])
    return [orjson.loads(line) for line in told.splitlines()]


async def test_the_input_that_kills_its_worker_is_found_and_fails_alone(store: Store) -> None:
    offending_position, count = 13, 20
    job_id = await store.submit(count)
    kills = 0
    for _ in range(60):
        if await store.status(job_id) != JobStatus.IN_PROGRESS:
            break
        await sweep(store.runtime)
        await others_run(store, 10)
        await no_pauses(store, job_id)
        for shard in await store.shards(job_id):
            if shard.state != ShardState.QUEUED:
                continue
            held = await store.claim(shard.id)
            if offending_position in (held.first_index + position for position in held.open_positions()):
                kills += 1
                await store.expire_lease(shard.id)
            else:
                await record(store.jobs, held, landed(held, route=store.routes[0]))
    snapshot = await checked(store, job_id)
    [failure] = snapshot.failures
    assert (failure.index, failure.code) == (offending_position, "worker_lost")
    # Three of the whole, one for each cut, then 5 alone: 1 / (10 x 5 + 2) to the fifth is less than 10^-6.
    assert kills <= 3 + ceil(log2(10)) + 5
    assert await store.status(job_id) == JobStatus.COMPLETED_WITH_ERRORS
    assert [line["index"] for line in await lines(store, job_id)] == list(range(count))


@pytest.mark.parametrize("seed", range(6))
async def test_however_it_is_cut_nothing_is_lost_or_doubled(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    job_id = await store.submit(26, bad={chance.randrange(26)}, with_ids=True)
    kept = []  # claims of every age: their holders may come back with results at any time
    for _ in range(12):
        shard = chance.choice(
            [each for each in await store.shards(job_id) if each.state == ShardState.QUEUED] or [None]
        )
        if shard is not None and chance.random() < 0.6:
            kept.append(await store.claim(shard.id))
            await queue_again(store, shard.id)
        elif shard is not None:
            await store.set_shard(shard.id, state=ShardState.QUEUED)
            await split_shard(store.jobs, shard.id)
        if kept and chance.random() < 0.6:
            held = chance.choice(kept)
            some = [position for position in held.open_positions() if chance.random() < 0.3]
            parts = landed(held, some, route=store.routes[0], cut=3)
            if some and chance.random() < 0.3:
                parts = refused(held, some)
            await record(store.jobs, held, parts)
        await checked(store, job_id)
    for shard_id in await store.shard_ids(job_id):
        [shard] = [each for each in await store.shards(job_id) if each.id == shard_id]
        if shard.state != ShardState.DONE:
            held = await store.claim(shard_id)
            await record(store.jobs, held, landed(held, route=store.routes[0]))
    await checked(store, job_id)
    told = await lines(store, job_id)
    assert [(line["index"], line["id"]) for line in told] == [(index, f"id-{index}") for index in range(26)]
    job = await get_job(store.jobs, "p", job_id)
    middle = results.IndexRange.of(job, 7, 19)
    rows = b"".join([bytes(piece) async for piece in results.npy(store.runtime.database, job, middle)])
    assert len(rows) == results.npy_bytes(job, middle)


async def test_what_is_not_queued_or_has_one_open_input_is_not_halved(store: Store) -> None:
    job_id = await store.submit(10)
    [shard_id] = await store.shard_ids(job_id)
    held = await store.claim(shard_id)
    assert await split_shard(store.jobs, shard_id) == 0
    await record(store.jobs, held, landed(held, range(9), route=store.routes[0]))
    await queue_again(store, shard_id)
    assert await split_shard(store.jobs, shard_id) == 1
    assert await split_shard(store.jobs, shard_id, Shard.worker_crashes > 0) == 0
    assert await split_shard(store.jobs, "no such shard") == 0
    assert await store.count(Job) == 1 and len(await store.shards(job_id)) == 1


async def test_a_half_is_claimed_where_its_first_index_stands(store: Store) -> None:
    job_id = await store.submit(30)
    await split_shard(store.jobs, (await store.shard_ids(job_id))[0])
    claimed = [await claims.claim_next(store.jobs, "w") for _ in range(4)]
    assert [(held.first_index, held.count) for held in claimed if held] == [(0, 5), (5, 5), (10, 10), (20, 10)]


async def test_an_upload_is_taken_up_again_behind_shards_that_were_split(store: Store) -> None:
    reservation = await job_intake.reserve(store.jobs, "p", "key")
    assert isinstance(reservation, job_intake.Reservation)
    with pytest.raises(ConnectionError):
        async with store.receiving_as(reservation) as intake:
            await intake.add(lines_of(20))
            raise ConnectionError
    for shard_id in await store.shard_ids(intake.job_id):
        assert await split_shard(store.jobs, shard_id) == 2
    again = await job_intake.reserve(store.jobs, "p", "key")
    assert isinstance(again, job_intake.Reservation) and again.resumes
    async with store.receiving_as(again) as intake:
        await intake.add(lines_of(34))
        await intake.finish(b"fingerprint")
    shards = [(shard.first_index, shard.count) for shard in await store.shards(intake.job_id)]
    assert shards == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 10), (30, 4)]
    for held in await store.claim_all(intake.job_id):
        await record(store.jobs, held, landed(held, route=store.routes[0]))
    assert await store.status(intake.job_id) == JobStatus.COMPLETED
