"""Shards of duplicates wait for the shard of the first occurrences without being claimed again and again."""

from __future__ import annotations

from engine.corpus.lines import ParsedRecords
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.blocked import find_blocker, unblock_shards
from engine.jobs.recording.record_outcomes import record
from engine.jobs.recording.split_shard import split_shard
from models.job import JobStatus, Shard, ShardState
from tests.integration.store import Store, landed, text_of
from tests.running import dispatch, run_shard, sweep


async def submit(store: Store, count: int, different: int) -> str:
    lines = ParsedRecords()
    for index in range(count):
        lines.add(text_of("text", index % different))
    async with store.receiving() as intake:
        await intake.add(lines)
        await intake.finish(b"fingerprint")
    return intake.job_id


async def run_what_may_run(store: Store, job_id: str) -> int:
    """Claims that workers would make of shards that are due now."""
    claims_made = 0
    for shard_id in await store.shard_ids(job_id):
        claims_made += await run_shard(store.runtime, shard_id, "w")
    return claims_made


async def test_duplicates_are_claimed_once_until_their_firsts_are_done(store: Store) -> None:
    job_id = await submit(store, 60, 10)
    first, *others = await store.shard_ids(job_id)
    held = await store.claim(first)  # a slow one
    assert await run_what_may_run(store, job_id) == 5
    assert {shard.blocked_by for shard in await store.shards(job_id) if shard.id != first} == {first}
    for _ in range(5):  # a message that is late, the sweep, dispatch: nobody claims them
        assert await run_what_may_run(store, job_id) == 0
        await sweep(store.runtime)
        assert await dispatch(store.runtime) == 0
    await record(store.jobs, held, landed(held, route=store.routes[0]))
    assert await store.count(Shard, Shard.blocked_by.is_not(None)) == 0
    assert (await store.job(job_id)).not_before is None
    assert await run_what_may_run(store, job_id) == len(others)
    assert await store.status(job_id) == JobStatus.COMPLETED
    assert {shard.state for shard in await store.shards(job_id)} == {ShardState.DONE}


async def test_a_crash_before_the_others_were_told_is_mended_by_the_sweep(store: Store) -> None:
    job_id = await submit(store, 20, 10)
    first, second = await store.shard_ids(job_id)
    held = await store.claim(first)
    await run_shard(store.runtime, second, "w")
    await store.set_shard(second, blocked_by=None)
    await record(store.jobs, held, landed(held, route=store.routes[0]))
    await store.set_shard(second, blocked_by=first)
    await sweep(store.runtime)
    assert (await store.shards(job_id))[1].blocked_by is None
    await run_shard(store.runtime, second, "w")
    assert await store.status(job_id) == JobStatus.COMPLETED


async def test_a_blocker_that_closes_meanwhile_blocks_nobody(store: Store) -> None:
    job_id = await submit(store, 20, 10)
    first, second = await store.claim_all(job_id)
    assert await find_blocker(store.runtime.database, job_id, [0, 3]) == first.shard_id
    await record(store.jobs, first, landed(first, route=store.routes[0]))
    await claims.release(
        store.jobs,
        second,
        delay_s=0,
        counts_as_attempt=False,
        reason="",
        waiting_on=None,
        blocked_by=first.shard_id,
    )
    assert (await store.shards(job_id))[1].blocked_by is None
    assert await find_blocker(store.runtime.database, job_id, [0, 3]) is None


async def test_a_blocker_that_is_halved_or_paused_or_cancelled(store: Store) -> None:
    job_id = await submit(store, 20, 10)
    first, second = await store.shard_ids(job_id)
    held = await store.claim(first)
    await run_shard(store.runtime, second, "w")
    await claims.release(store.jobs, held, delay_s=0, counts_as_attempt=False, reason="", waiting_on=None)
    await store.set_shard(first, state=ShardState.QUEUED)
    assert await split_shard(store.jobs, first) == 2
    await run_shard(store.runtime, first, "w")  # frees the second, which then waits for the other half
    await run_shard(store.runtime, second, "w")
    _, half, blocked = await store.shards(job_id)
    assert blocked.blocked_by == half.id
    await run_shard(store.runtime, half.id, "w")
    await run_shard(store.runtime, second, "w")
    assert await store.status(job_id) == JobStatus.COMPLETED
    assert await unblock_shards(store.jobs) == 0
