"""Submit: one transaction for a small corpus, shard by shard for a large one, and one job for each Idempotency-Key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select, update

from engine.corpus.lines import ParsedRecords
from engine.jobs.ingest import job_intake
from engine.jobs.ingest.job_intake import IdempotentReplay, Reservation
from engine.jobs.recording.record_outcomes import record
from engine.queue import worker_heartbeats
from engine.storage.database import Database
from engine.storage.upload_leases import renew
from models.base import db_now
from models.embedding import InputError
from models.errors import Conflict, IdempotencyMismatch, InvalidInput, UploadInterrupted
from models.job import IdempotencyKey, Job, JobStatus, Shard, ShardInputs
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import Store, landed, text_of
from tests.running import sweep
from tests.services import run_async
from tests.waiting import wait_until


def lines_of(count: int, *, start: int = 0) -> ParsedRecords:
    lines = ParsedRecords()
    for index in range(start, start + count):
        lines.add(text_of("text", index))
    return lines


def bad_lines(count: int) -> ParsedRecords:
    lines = ParsedRecords()
    for _ in range(count):
        lines.append_error(InputError("invalid_json", "the line is not valid JSON"))
    return lines


async def test_shards_follow_each_other_without_gap_or_overlap(store: Store) -> None:
    shards = await store.shards(await store.submit(47))
    assert [(shard.first_index, shard.count) for shard in shards] == [(0, 10), (10, 10), (20, 10), (30, 10), (40, 7)]


async def test_nothing_of_a_small_job_exists_before_it_is_whole(store: Store) -> None:
    async with store.receiving() as intake:
        await intake.add(lines_of(9))
        assert await store.count(Job) == await store.count(Shard) == 0
        await intake.finish(b"fingerprint")
    job = await store.job(intake.job_id)
    assert (job.status, job.total, job.ingested, job.upload_lease_until) == (JobStatus.IN_PROGRESS, 9, 9, None)


async def test_a_large_job_runs_while_it_arrives_and_may_be_through_before_its_end(store: Store) -> None:
    async with store.receiving() as intake:
        await intake.add(lines_of(20))
        for held in await store.claim_all(intake.job_id):
            await record(store.jobs, held, landed(held, route=store.routes[0]))
        job = await store.job(intake.job_id)
        assert (job.status, job.total, job.completed, job.open_shards) == (JobStatus.IN_PROGRESS, None, 20, 0)
        await sweep(store.runtime)
        assert await store.status(intake.job_id) == JobStatus.IN_PROGRESS
        await intake.finish(b"fingerprint")
    job = await store.job(intake.job_id)
    assert (job.status, job.total) == (JobStatus.COMPLETED, 20)
    (await DatabaseSnapshot.read(store.runtime.database, intake.job_id)).check()


async def test_an_upload_that_breaks_off_before_its_first_shard_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError):
        async with store.receiving() as intake:
            await intake.add(lines_of(5))
            raise RuntimeError
    assert await store.count(Job) == 0


async def test_an_upload_that_breaks_off_later_fails_its_job_with_a_reason(store: Store) -> None:
    with pytest.raises(RuntimeError):
        async with store.receiving() as intake:
            await intake.add(lines_of(25))
            raise RuntimeError
    job = await store.job(intake.job_id)
    assert (job.status, job.open_shards) == (JobStatus.FAILED, 0)
    assert job.error_summary[0]["code"] == "upload_interrupted"
    (await DatabaseSnapshot.read(store.runtime.database, intake.job_id)).check()


@pytest.mark.parametrize("count", [3, 25])
async def test_a_corpus_without_a_usable_line_leaves_nothing(store: Store, count: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        async with store.receiving() as intake:
            await intake.add(bad_lines(count))
            await intake.finish(b"fingerprint")
    assert caught.value.code == "no_usable_input"
    for _ in range(5):
        await sweep(store.runtime)
    assert await store.count(Job) == await store.count(Shard) == 0


async def test_of_many_requests_with_one_key_one_may_go_on(store: Store) -> None:
    other = store.another()
    answers = await asyncio.gather(
        *(job_intake.reserve(each.jobs, "p", "key") for _ in range(10) for each in (store, other)),
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, Reservation)]
    lost = [answer for answer in answers if isinstance(answer, Conflict) and answer.code == "idempotency_in_flight"]
    assert (len(won), len(lost)) == (1, 19)
    assert isinstance(await job_intake.reserve(store.jobs, "another project", "key"), Reservation)
    await other.close()


async def test_a_finished_request_is_replayed(store: Store) -> None:
    reservation = await reserved(store)
    async with store.receiving_as(reservation) as intake:
        await intake.add(lines_of(3))
        await intake.finish(b"fingerprint")
    assert intake.job_id == reservation.job_id
    assert await job_intake.reserve(store.jobs, "p", "key") == IdempotentReplay(intake.job_id, b"fingerprint")


async def test_a_key_is_free_again_when_its_request_failed(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput):
            async with store.receiving_as(await reserved(store)) as intake:
                await intake.add(bad_lines(25))
                await intake.finish(b"fingerprint")
    assert await store.count(IdempotencyKey) == 0


async def test_a_key_is_free_at_once_when_its_process_is_known_to_be_dead(store: Store) -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    first = await reserved(store)
    with pytest.raises(Conflict):
        await job_intake.reserve(store.jobs, "p", "key")
    dead = f"{worker_heartbeats.process_name().rpartition(':')[0]}:{process.pid}#x"
    async with store.runtime.database.write() as connection:
        await connection.execute(update(IdempotencyKey).values(owner=dead))
    second = await reserved(store)
    assert second.job_id != first.job_id and not second.resumes  # nothing of the first was stored


async def test_a_key_of_another_machine_is_free_when_its_lease_has_run_out(store: Store) -> None:
    await reserved(store)
    async with store.runtime.database.write() as connection:
        await connection.execute(update(IdempotencyKey).values(owner="elsewhere/b/n:1#x"))
    with pytest.raises(Conflict):
        await job_intake.reserve(store.jobs, "p", "key")
    async with store.runtime.database.write() as connection:
        await connection.execute(update(IdempotencyKey).values(owner_until=db_now() - 1))
    await reserved(store)


@pytest.mark.parametrize("more", [0, 3, 25])
async def test_an_upload_that_breaks_off_goes_on_where_it_was_cut(store: Store, more: int) -> None:
    """What was embedded of it is not embedded, or charged, again."""
    with pytest.raises(RuntimeError):
        async with store.receiving_as(await reserved(store)) as cut_off:
            await cut_off.add(lines_of(25))
            raise RuntimeError
    job_id = cut_off.job_id
    assert await store.status(job_id) == JobStatus.IN_PROGRESS
    for held in await store.claim_all(job_id):
        await record(store.jobs, held, landed(held, route=store.routes[0]))
    await sweep(store.runtime)
    again = await reserved(store)
    assert (again.job_id, again.resumes) == (job_id, True)
    async with store.receiving_as(again) as intake:
        for line in range(20 + more):  # in other chunks than before
            await intake.add(lines_of(1, start=line))
        await intake.finish(b"fingerprint")
    job = await store.job(job_id)
    assert (job.total, job.completed) == (20 + more, 20)
    assert job.status == (JobStatus.IN_PROGRESS if more else JobStatus.COMPLETED)
    for shard in (await store.shards(job_id))[2:]:
        await record(store.jobs, held := await store.claim(shard.id), landed(held, route=store.routes[0]))
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    assert snapshot.inputs_in_ledger == 20 + more and snapshot.with_vector == list(range(20 + more))


async def test_an_upload_that_goes_on_knows_the_texts_that_came_before_it_was_cut(store: Store) -> None:
    with pytest.raises(RuntimeError):
        async with store.receiving_as(await reserved(store)) as cut_off:
            await cut_off.add(lines_of(10))
            raise RuntimeError
    async with store.receiving_as(await reserved(store)) as intake:
        await intake.add(lines_of(10))
        await intake.add(lines_of(10))
        await intake.finish(b"fingerprint")
    assert [
        bool(row.duplicates)
        for row in await store._rows(select(ShardInputs.duplicates).join(Shard).order_by(Shard.first_index))
    ] == [
        False,
        True,
    ]
    assert intake.job_id == cut_off.job_id


@pytest.mark.parametrize(
    "other", [lines_of(25, start=1), lines_of(8), bad_lines(25)], ids=["other texts", "shorter", "bad"]
)
async def test_an_upload_goes_on_with_the_same_corpus_only(store: Store, other: ParsedRecords) -> None:
    with pytest.raises(RuntimeError):
        async with store.receiving_as(await reserved(store)) as cut_off:
            await cut_off.add(lines_of(25))
            raise RuntimeError
    with pytest.raises(IdempotencyMismatch):
        async with store.receiving_as(await reserved(store)) as intake:
            await intake.add(other)
            await intake.finish(b"fingerprint")
    assert await store.status(cut_off.job_id) == JobStatus.IN_PROGRESS  # the right corpus may still come
    async with store.receiving_as(await reserved(store)) as intake:
        await intake.add(lines_of(25))
        await intake.finish(b"fingerprint")
    assert intake.job_id == cut_off.job_id and (await store.job(intake.job_id)).total == 25


async def test_refused_lines_are_part_of_what_goes_on(store: Store) -> None:
    async def send(intake: job_intake.JobIntake) -> None:
        lines = lines_of(5)
        lines.append_error(InputError("invalid_json", "the line is empty"), count=5000)
        lines.add("")
        await intake.add(lines)
        await intake.add(lines_of(15, start=5))

    with pytest.raises(RuntimeError):
        async with store.receiving_as(await reserved(store)) as cut_off:
            await send(cut_off)
            raise RuntimeError
    async with store.receiving_as(await reserved(store)) as intake:
        await send(intake)
        await intake.finish(b"fingerprint")
    job = await store.job(intake.job_id)
    assert intake.job_id == cut_off.job_id
    assert (job.total, job.failed, job.completed) == (5021, 5001, 0)
    (await DatabaseSnapshot.read(store.runtime.database, intake.job_id)).check()


async def test_an_upload_that_lost_its_key_to_a_retry_adds_nothing(store: Store) -> None:
    """The first server was frozen past its lease; the caller's retry goes on with its job; then the first one wakes."""
    first = await reserved(store)
    with pytest.raises(Conflict) as caught:
        async with store.receiving_as(first) as frozen:
            await frozen.add(lines_of(15))
            async with store.runtime.database.write() as connection:
                await connection.execute(update(IdempotencyKey).values(owner_until=db_now() - 1))
            second = await reserved(store)
            assert second.job_id == first.job_id
            async with store.receiving_as(second) as retry:
                await retry.add(lines_of(25))
                with pytest.raises(Conflict):
                    await frozen.add(lines_of(10, start=15))
                await retry.finish(b"fingerprint")
            await frozen.finish(b"fingerprint")
    assert caught.value.code == "upload_taken_over"
    assert await job_intake.reserve(store.jobs, "p", "key") == IdempotentReplay(retry.job_id, b"fingerprint")
    job = await store.job(retry.job_id)
    assert (job.status, job.total) == (JobStatus.IN_PROGRESS, 25)
    (await DatabaseSnapshot.read(store.runtime.database, job.id)).check()


async def test_an_accepted_job_is_never_dead(store: Store) -> None:
    """Its upload was given up by the sweep, cancelled or deleted meanwhile: the answer is an error that says so."""
    for status, kind in (
        (JobStatus.FAILED, UploadInterrupted),
        (JobStatus.CANCELLED, Conflict),
        (JobStatus.CANCELLING, Conflict),
    ):
        for more in (0, 25):
            with pytest.raises(kind):
                async with store.receiving() as intake:
                    await intake.add(lines_of(25))
                    await store.set_job(intake.job_id, status=status, finished_at=db_now())
                    await intake.add(lines_of(more, start=25))
                    await intake.finish(b"fingerprint")


async def test_the_last_beat_of_an_upload_does_not_bring_its_lease_back(store: Store) -> None:
    """It beats until the answer is out, which takes a while where the broker is slow: the corpus is whole by then."""
    reservation = await reserved(store)
    settings = store.runtime.settings
    async with store.receiving_as(reservation) as intake:
        await intake.add(lines_of(25))
        await store.set_job(intake.job_id, upload_lease_until=db_now() - 1)
        await renew(store.runtime.database, [reservation.owner], lease_s=settings.lease_s, resume_s=1.0)
        assert (await store.job(intake.job_id)).upload_lease_until > 0
        await intake.finish(b"fingerprint")
        await renew(store.runtime.database, [reservation.owner], lease_s=settings.lease_s, resume_s=1.0)
    assert (await store.job(intake.job_id)).upload_lease_until is None
    async with store.runtime.database.read() as connection:
        left_s = (await connection.execute(select(IdempotencyKey.expires_at - db_now()))).scalar_one()
    assert left_s > settings.lease_s * 2


async def test_the_lease_of_an_upload_is_renewed_while_the_event_loop_is_busy(
    database_url: str, tmp_path: Path
) -> None:
    store = Store.open(database_url, tmp_path, lease_s=0.2)
    async with store.receiving_as(await reserved(store)) as intake:
        await intake.add(lines_of(25))
        await store.set_job(intake.job_id, upload_lease_until=db_now() - 1)
        url = store.runtime.settings.sqlalchemy_url
        # Nothing else of this process runs on the loop until the lease has been renewed: the loop is held by us.
        wait_until(lambda: run_async(lease_left_s(url, intake.job_id)) > 0, 30.0, what="the lease's renewal")
        await intake.finish(b"fingerprint")
    await store.close()


async def lease_left_s(url: str, job_id: str) -> float:
    database = Database(url, pool_size=1)
    try:
        async with database.read() as connection:
            left = await connection.execute(select(Job.upload_lease_until - db_now()).where(Job.id == job_id))
            return float(left.scalar_one() or 0.0)
    finally:
        await database.close()


async def reserved(store: Store) -> Reservation:
    reservation = await job_intake.reserve(store.jobs, "p", "key")
    assert isinstance(reservation, Reservation)
    return reservation
