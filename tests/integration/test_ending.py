"""Cancel and delete, at each state a job can be in: finished work stays readable, and nothing rises from the dead."""

from __future__ import annotations

import asyncio

import pytest

from engine.corpus.lines import ParsedRecords
from engine.jobs.control import termination
from engine.jobs.leasing import claim as claims
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.record_outcomes import record
from models.errors import Conflict, JobNotFound
from models.job import Job, JobInputError, JobStatus, Shard, ShardInputs, ShardState, VectorBlock
from models.usage import UsageRecord
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import Store, landed, refused, text_of
from tests.running import sweep


async def checked(store: Store, job_id: str) -> DatabaseSnapshot:
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    return snapshot


async def rows_of(store: Store, job_id: str) -> dict[str, int]:
    counts = {table.__tablename__: await store.count(table, table.job_id == job_id) for table in (Shard, VectorBlock)}
    counts["input_errors"] = await store.count(JobInputError, JobInputError.job_id == job_id)
    counts["jobs"] = await store.count(Job, Job.id == job_id)
    return counts


def some_lines(count: int) -> ParsedRecords:
    lines = ParsedRecords()
    for index in range(count):
        lines.add(text_of("text", index))
    return lines


@pytest.mark.fault(44)
async def test_cancelling_a_job_that_nobody_works_on_ends_it_at_once(store: Store) -> None:
    job_id = await store.submit(30)
    await termination.cancel(store.jobs, "p", job_id)
    snapshot = await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.CANCELLED
    assert {shard.state for shard in snapshot.shards} == {ShardState.CANCELLED}
    await termination.cancel(store.jobs, "p", job_id)


@pytest.mark.fault(44)
async def test_cancelling_a_running_job_waits_for_those_who_hold_shards(store: Store) -> None:
    job_id = await store.submit(30)
    held = await store.claim((await store.shard_ids(job_id))[1])
    await termination.cancel(store.jobs, "p", job_id)
    await termination.cancel(store.jobs, "p", job_id)
    assert await store.status(job_id) == JobStatus.CANCELLING
    assert not (await record(store.jobs, held, landed(held, range(3), route=store.routes[0]))).job_active
    await termination.drop_claim(store.jobs, held)
    snapshot = await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.CANCELLED
    assert sorted(snapshot.with_vector) == [10, 11, 12]


@pytest.mark.fault(44)
async def test_a_shard_that_ends_while_its_job_is_cancelling_ends_the_job(store: Store) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    await termination.cancel(store.jobs, "p", job_id)
    await record(store.jobs, held, landed(held, route=store.routes[0]))
    await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.CANCELLED


@pytest.mark.fault(44)
@pytest.mark.parametrize("errors", [0, 4, 10])
async def test_a_finished_job_cannot_be_cancelled(store: Store, errors: int) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    await record(store.jobs, held, refused(held, range(errors)))
    if errors < 10:
        await record(store.jobs, held, landed(held, range(errors, 10), route=store.routes[0]))
    before = await store.job(job_id)
    with pytest.raises(Conflict) as caught:
        await termination.cancel(store.jobs, "p", job_id)
    assert not caught.value.should_retry
    assert await store.job(job_id) == before


@pytest.mark.fault(44)
async def test_cancel_against_finish_ends_in_one_of_the_two(store: Store) -> None:
    other = store.another()
    for _ in range(4):
        holders = await store.claim_all(job_id := await store.submit(20))
        await asyncio.gather(
            termination.cancel(other.jobs, "p", job_id),
            *(record(store.jobs, held, landed(held, route=store.routes[0])) for held in holders),
            return_exceptions=True,
        )
        for held in holders:
            await termination.drop_claim(store.jobs, held)
        await checked(store, job_id)
        assert await store.status(job_id) in (JobStatus.CANCELLED, JobStatus.COMPLETED)
    await other.close()


@pytest.mark.fault(44)
async def test_a_job_cancelled_while_its_corpus_arrives_stays_cancelled(store: Store) -> None:
    with pytest.raises(Conflict, match="cancelled"):  # the caller is told, not answered 202
        async with store.receiving() as intake:
            await intake.add(some_lines(25))
            await termination.cancel(store.jobs, "p", intake.job_id)
            await intake.add(some_lines(25))
            await intake.finish(b"fingerprint")
    assert await store.status(intake.job_id) == JobStatus.CANCELLED
    await sweep(store.runtime)
    snapshot = await checked(store, intake.job_id)
    assert {shard.state for shard in snapshot.shards} == {ShardState.CANCELLED}
    for shard in snapshot.shards:
        assert await claims.claim(store.jobs, shard.id, "w") is None


async def test_another_project_s_job_cannot_be_cancelled_or_deleted(store: Store) -> None:
    job_id = await store.submit(project="p")
    for verb in (termination.cancel, termination.delete_job):
        for project, name in (("q", job_id), ("p", "job_" + "0" * 32), ("p", "nonsense")):
            with pytest.raises(JobNotFound):
                await verb(store.jobs, project, name)
    assert await store.status(job_id) == JobStatus.IN_PROGRESS


async def test_a_deleted_job_is_gone_at_once_and_its_rows_soon_but_never_its_ledger(store: Store) -> None:
    job_id = await store.submit(30, bad={4}, with_ids=True)
    for held in await store.claim_all(job_id):
        await record(store.jobs, held, landed(held, route=store.routes[0]))
    await termination.delete_job(store.jobs, "p", job_id)
    with pytest.raises(JobNotFound):
        await get_job(store.jobs, "p", job_id)
    with pytest.raises(JobNotFound):
        await termination.delete_job(store.jobs, "p", job_id)
    for _ in range(5):
        await sweep(store.runtime)
    assert set((await rows_of(store, job_id)).values()) == {0}
    assert await store.count(ShardInputs) == 0
    assert await store.count(UsageRecord, UsageRecord.job_id == job_id) == 3


async def test_deleting_a_running_job_lets_nothing_rise_again(store: Store) -> None:
    """Workers go on recording, beating and releasing all the while, and after."""
    job_id = await store.submit(30)
    one, two, three = await store.claim_all(job_id)
    await record(store.jobs, one, landed(one, range(4), route=store.routes[0]))
    await termination.delete_job(store.jobs, "p", job_id)
    assert not await claims.heartbeat(store.jobs, one)
    assert not (await record(store.jobs, one, landed(one, route=store.routes[0]))).job_active
    await claims.release(store.jobs, two, delay_s=0, counts_as_attempt=True, reason="", waiting_on="quota")
    await sweep(store.runtime)
    await store.expire_lease(three.shard_id)
    for _ in range(6):
        await sweep(store.runtime)
    assert set((await rows_of(store, job_id)).values()) == {0}
    for held in (one, two, three):
        assert not (await record(store.jobs, held, landed(held, range(10), route=store.routes[0]))).job_active
        assert not await claims.heartbeat(store.jobs, held)
        await claims.release(store.jobs, held, delay_s=0, counts_as_attempt=True, reason="", waiting_on="quota")
        await termination.drop_claim(store.jobs, held)
    assert set((await rows_of(store, job_id)).values()) == {0}
    # What came too late was paid for all the same: it is in the ledger as wasted.
    of_job = UsageRecord.job_id == job_id
    assert await store.count(UsageRecord, of_job, UsageRecord.kind == "wasted") >= 3
    assert await store.count(UsageRecord, of_job, UsageRecord.kind == "delivered") <= 2


async def test_deleting_and_recording_at_once_leaves_no_rows(store: Store) -> None:
    other = store.another()
    for _ in range(3):
        holders = await store.claim_all(job_id := await store.submit(40))

        async def delete(doomed: str) -> None:
            await termination.delete_job(other.jobs, "p", doomed)
            for _ in range(3):
                await sweep(other.runtime)

        await asyncio.gather(
            delete(job_id), *(record(store.jobs, held, landed(held, route=store.routes[0])) for held in holders)
        )
        for held in holders:
            await termination.drop_claim(store.jobs, held)
        for _ in range(5):
            await sweep(store.runtime)
        assert set((await rows_of(store, job_id)).values()) == {0}
    await other.close()


@pytest.mark.parametrize("purged", [False, True])
async def test_a_job_deleted_while_its_corpus_arrives_is_refused_and_goes(store: Store, purged: bool) -> None:
    async def upload() -> None:
        async with store.receiving() as intake:
            seen.append(intake.job_id)
            await intake.add(some_lines(25))
            await termination.delete_job(store.jobs, "p", intake.job_id)
            for _ in range(5 if purged else 0):
                await sweep(store.runtime)
            await intake.add(some_lines(25))
            await intake.finish(b"fingerprint")

    seen: list[str] = []
    with pytest.raises(Conflict):
        await upload()
    for _ in range(6):
        await sweep(store.runtime)
    assert set((await rows_of(store, seen[0])).values()) == {0}
