"""Sweep: whatever a crash leaves behind is mended, by any number of sweepers at once, and mended once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import insert, select

from engine.corpus.lines import ParsedRecords
from engine.jobs.ingest import job_intake
from engine.jobs.maintenance.crashing_inputs import MAX_SOLO_CRASHES
from engine.jobs.recording.record_outcomes import record
from engine.queue import worker_heartbeats
from models.base import db_now
from models.errors import UploadInterrupted
from models.job import (
    IdempotencyKey,
    Job,
    JobInputError,
    JobStatus,
    RefusedInputs,
    Shard,
    ShardInputs,
    ShardState,
    VectorBlock,
)
from models.usage import UsageRecord
from models.worker import WorkerProcess
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import Store, landed, text_of
from tests.running import sweep


@pytest.fixture
async def other(store: Store) -> AsyncIterator[Store]:
    other = store.another()
    yield other
    await other.close()


async def sweep_twice(store: Store, other: Store) -> None:
    """Two sweepers at once, and one more after them: nothing may be done twice."""
    await asyncio.gather(sweep(store.runtime), sweep(other.runtime))
    await sweep(store.runtime)


async def checked(store: Store, job_id: str) -> DatabaseSnapshot:
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    return snapshot


async def test_a_lost_worker_s_shard_runs_again_and_a_live_one_s_does_not(store: Store, other: Store) -> None:
    lost, alive = await store.submit(), await store.submit()
    [lost_claim], [alive_claim] = await store.claim_all(lost), await store.claim_all(alive)
    await store.expire_lease(lost_claim.shard_id)
    store.notifier.queued = 0
    await sweep_twice(store, other)
    assert [shard.state for shard in await store.shards(lost)] == [ShardState.QUEUED]
    assert store.notifier.queued == other.notifier.queued == 1
    assert [shard.state for shard in await store.shards(alive)] == [ShardState.RUNNING]
    again = await store.claim(lost_claim.shard_id)
    assert (again.attempt, again.fence) == (1, 2)  # a death spends no attempt
    assert alive_claim.fence == 1


async def test_lost_messages_are_replaced_by_the_next_sweep(store: Store, other: Store) -> None:
    await store.submit(30)
    assert store.notifier.queued == 3
    store.notifier.queued = 0  # the broker has lost its data
    await sweep_twice(store, other)
    assert store.notifier.queued == other.notifier.queued == 3


async def test_a_shard_that_loses_its_workers_is_halved_and_its_last_input_fails(store: Store, other: Store) -> None:
    job_id = await store.submit(20, bad={19})
    deadly, fine = await store.claim_all(job_id)
    await record(store.jobs, deadly, landed(deadly, range(8), route=store.routes[0]))
    await record(store.jobs, fine, landed(fine, route=store.routes[0]))
    for lost in range(1, 3):
        await store.expire_lease(deadly.shard_id)
        await sweep_twice(store, other)
        assert [shard.worker_crashes for shard in await store.shards(job_id)] == [lost, 0]
        await store.claim(deadly.shard_id)
    await store.expire_lease(deadly.shard_id)
    await sweep_twice(store, other)
    await sweep(store.runtime)
    assert [(shard.first_index, shard.count) for shard in await store.shards(job_id)] == [(0, 9), (9, 1), (10, 10)]
    await checked(store, job_id)
    for _ in range(MAX_SOLO_CRASHES + 1):  # nothing else runs: there is no evidence but the number of deaths
        assert await store.status(job_id) == JobStatus.IN_PROGRESS
        for shard in await store.shards(job_id):
            if shard.state != ShardState.DONE:
                await store.set_shard(shard.id, next_run_at=db_now())
                await store.claim(shard.id)
                await store.expire_lease(shard.id)
        await sweep_twice(store, other)
    await sweep(store.runtime)
    snapshot = await checked(store, job_id)
    assert {row.code for row in snapshot.failures if row.index < 10} == {"worker_lost"}
    assert sorted(snapshot.with_error) == [8, 9, 19]
    job = await store.job(job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED_WITH_ERRORS, 17, 3)


async def test_a_job_with_nothing_left_to_do_is_finished(store: Store, other: Store) -> None:
    job_id = await store.submit(20)
    for held in await store.claim_all(job_id):
        await record(store.jobs, held, landed(held, route=store.routes[0]))
    await store.set_job(job_id, status=JobStatus.IN_PROGRESS, finished_at=None)
    version = (await store.job(job_id)).version
    await sweep_twice(store, other)
    await checked(store, job_id)
    job = await store.job(job_id)
    assert (job.status, job.version) == (JobStatus.COMPLETED, version + 1)


@pytest.mark.fault(44)
async def test_a_cancel_that_was_cut_off_is_brought_to_its_end(store: Store, other: Store) -> None:
    job_id = await store.submit(30)
    first = (await store.shard_ids(job_id))[0]
    await store.claim(first)
    await store.set_job(job_id, status=JobStatus.CANCELLING)
    await sweep_twice(store, other)
    assert await store.status(job_id) == JobStatus.CANCELLING
    await store.expire_lease(first)
    await sweep_twice(store, other)
    await checked(store, job_id)
    job = await store.job(job_id)
    assert (job.status, job.open_shards) == (JobStatus.CANCELLED, 0)


async def test_an_abandoned_intake_fails_with_a_reason(store: Store, other: Store) -> None:
    """The API died in the middle of an upload: what had arrived ran, and stays readable."""
    async with store.receiving() as intake:
        lines = ParsedRecords()
        for index in range(25):
            lines.add(text_of("text", index))
        await intake.add(lines)
        job_id = intake.job_id
        held = await store.claim((await store.shard_ids(job_id))[0])
        await record(store.jobs, held, landed(held, route=store.routes[0]))
        await sweep(store.runtime)
        assert await store.status(job_id) == JobStatus.IN_PROGRESS
        await store.set_job(job_id, upload_lease_until=db_now() - 1)
        await sweep_twice(store, other)  # its process is here, and alive: it may have been stopped for a while
        assert await store.status(job_id) == JobStatus.IN_PROGRESS
        await store.set_job(job_id, upload_owner="elsewhere/b/n:1#x")
        await sweep_twice(store, other)
        job = await store.job(job_id)
        assert (job.status, job.total, job.completed, job.open_shards) == (JobStatus.FAILED, None, 10, 0)
        assert [(entry["code"], entry["count"]) for entry in job.error_summary] == [("upload_interrupted", 0)]
        await checked(store, job_id)
        # The upload was not dead, only frozen: what it still sends changes nothing.
        with pytest.raises(UploadInterrupted):
            await intake.finish(b"fingerprint")
    job = await store.job(job_id)
    assert job.status == JobStatus.FAILED
    await sweep_twice(store, other)
    snapshot = await checked(store, job_id)
    assert {shard.state for shard in snapshot.shards} == {ShardState.DONE, ShardState.CANCELLED}


async def test_an_upload_under_a_key_is_left_open_for_a_while(store: Store, other: Store) -> None:
    reservation = await job_intake.reserve(store.jobs, "p", "key")
    assert isinstance(reservation, job_intake.Reservation)
    with pytest.raises(RuntimeError):
        async with store.receiving_as(reservation) as intake:
            lines = ParsedRecords()
            for index in range(25):
                lines.add(text_of("text", index))
            await intake.add(lines)
            raise RuntimeError
    await sweep_twice(store, other)
    assert await store.status(intake.job_id) == JobStatus.IN_PROGRESS
    await store.set_job(intake.job_id, upload_lease_until=db_now() - store.runtime.settings.upload_resume_s - 1)
    await sweep_twice(store, other)
    assert await store.status(intake.job_id) == JobStatus.FAILED
    assert await store.count(IdempotencyKey) == 0


async def test_a_shard_that_comes_back_to_a_failed_job_is_closed(store: Store, other: Store) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    await store.set_job(job_id, status=JobStatus.FAILED, finished_at=db_now())
    await store.expire_lease(held.shard_id)
    await sweep_twice(store, other)
    assert [shard.state for shard in await store.shards(job_id)] == [ShardState.CANCELLED]
    await checked(store, job_id)


async def test_an_expired_job_and_all_its_rows_but_the_ledger_go(store: Store, other: Store) -> None:
    gone, kept = await store.submit(30, bad={4}), await store.submit()
    for job_id in (gone, kept):
        for held in await store.claim_all(job_id):
            await record(store.jobs, held, landed(held, route=store.routes[0]))
    await store.set_job(gone, expires_at=db_now() - 1)
    for _ in range(4):
        await sweep_twice(store, other)
    for table in (Shard, VectorBlock, JobInputError, RefusedInputs):
        assert await store.count(table, table.job_id == gone) == 0
    assert await store.count(Job) == 1
    assert await store.count(ShardInputs) == len(await store.shards(kept))
    assert await store.count(UsageRecord, UsageRecord.job_id == gone) == 3
    await checked(store, kept)
    assert await store.status(kept) == JobStatus.COMPLETED


async def test_old_keys_and_workers_long_gone_are_forgotten(store: Store, other: Store) -> None:
    await job_intake.reserve(store.jobs, "p", "kept")
    async with store.runtime.database.write() as connection:
        await connection.execute(
            insert(IdempotencyKey).values(project="p", key="old", job_id="j", expires_at=db_now() - 1)
        )
        for worker, silent_s in (("silent for an hour", 3601.0), ("silent for less", 3500.0)):
            await connection.execute(
                insert(WorkerProcess).values(id=worker, slots=1, started_at=0.0, seen_at=db_now() - silent_s)
            )
    await worker_heartbeats.heartbeat(store.runtime.database, "alive", slots=1)
    await sweep_twice(store, other)
    async with store.runtime.database.read() as connection:
        assert list((await connection.execute(select(IdempotencyKey.key))).scalars()) == ["kept"]
        assert list((await connection.execute(select(WorkerProcess.id).order_by(WorkerProcess.id))).scalars()) == [
            "alive",
            "silent for less",
        ]


async def test_a_sweep_of_a_healthy_store_changes_nothing(store: Store, other: Store) -> None:
    waiting, running = await store.submit(30), await store.submit()
    await store.claim_all(running)
    before = (
        [await store.job(job) for job in (waiting, running)],
        await store.shards(waiting),
        store.notifier.queued,
    )
    await sweep_twice(store, other)
    after = (
        [await store.job(job) for job in (waiting, running)],
        await store.shards(waiting),
        store.notifier.queued,
    )
    assert after == before


def pid_of_the_dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


async def test_a_worker_that_died_here_is_not_waited_for_and_one_elsewhere_is(store: Store, other: Store) -> None:
    gone = pid_of_the_dead()
    here = worker_heartbeats.process_name().rpartition(":")[0]
    alive, dead, elsewhere = [(await store.claim_all(await store.submit()))[0].shard_id for _ in range(3)]
    for shard_id, worker in (
        (alive, worker_heartbeats.process_name()),
        (dead, f"{here}:{gone}"),
        (elsewhere, f"another-{here}:{gone}"),
    ):
        await store.set_shard(shard_id, worker=worker)
    await sweep_twice(store, other)
    assert [shard_id for shard_id in (alive, dead, elsewhere) if await store.state_of(shard_id) == "queued"] == [dead]
    assert await store.count(Shard, Shard.state == ShardState.RUNNING) == 2
