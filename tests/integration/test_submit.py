"""Submit: one transaction for a small corpus, shard by shard for a large one, and one job for each Idempotency-Key."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select, update

from engine.corpus import Lines
from engine.jobs import submit
from engine.jobs.record import record
from engine.jobs.submit import Replay
from engine.jobs.sweep import sweep
from models.base import db_now
from models.embedding import InputError
from models.errors import Conflict, InvalidInput
from models.job import IdempotencyKey, Job, JobStatus, Shard
from tests.integration.store import Store, landed, text_of
from tests.integration.truth import Truth


def lines_of(count: int, *, start: int = 0) -> Lines:
    lines = Lines()
    for index in range(start, start + count):
        lines.add(text_of("text", index))
    return lines


def bad_lines(count: int) -> Lines:
    lines = Lines()
    for _ in range(count):
        lines.refuse(InputError("invalid_json", "the line is not valid JSON"))
    return lines


async def test_shards_follow_each_other_without_gap_or_overlap(store: Store) -> None:
    shards = await store.shards(await store.submit(47))
    assert [(shard.seq, shard.first_index, shard.count) for shard in shards] == [
        (0, 0, 10),
        (1, 10, 10),
        (2, 20, 10),
        (3, 30, 10),
        (4, 40, 7),
    ]


async def test_nothing_of_a_small_job_exists_before_it_is_whole(store: Store) -> None:
    async with store.receiving() as intake:
        await intake.add(lines_of(9))
        assert await store.count(Job) == await store.count(Shard) == 0
        await intake.finish(b"fingerprint")
    job = await store.job(intake.job_id)
    assert (job.status, job.total, job.ingested, job.intake_until) == (JobStatus.IN_PROGRESS, 9, 9, None)


async def test_a_large_job_runs_while_it_arrives_and_may_be_through_before_its_end(store: Store) -> None:
    async with store.receiving() as intake:
        await intake.add(lines_of(20))
        for held in await store.claim_all(intake.job_id):
            await record(store.runtime, held, landed(held, route=store.routes[0]))
        job = await store.job(intake.job_id)
        assert (job.status, job.total, job.completed, job.open_shards) == (JobStatus.IN_PROGRESS, None, 20, 0)
        await sweep(store.runtime)
        assert await store.status(intake.job_id) == JobStatus.IN_PROGRESS
        await intake.finish(b"fingerprint")
    job = await store.job(intake.job_id)
    assert (job.status, job.total) == (JobStatus.COMPLETED, 20)
    (await Truth.read(store.runtime.database, intake.job_id)).check()


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
    (await Truth.read(store.runtime.database, intake.job_id)).check()


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
        *(submit.reserve(each.runtime, "p", "key") for _ in range(10) for each in (store, other)),
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, str)]
    lost = [answer for answer in answers if isinstance(answer, Conflict) and answer.code == "idempotency_in_flight"]
    assert (len(won), len(lost)) == (1, 19)
    assert isinstance(await submit.reserve(store.runtime, "another project", "key"), str)
    await other.close()


async def test_a_finished_request_is_replayed(store: Store) -> None:
    job_id = await submit.reserve(store.runtime, "p", "key")
    assert isinstance(job_id, str)
    async with store.receiving(job_id=job_id, key="key") as intake:
        await intake.add(lines_of(3))
        await intake.finish(b"fingerprint")
    assert intake.job_id == job_id
    assert await submit.reserve(store.runtime, "p", "key") == Replay(job_id, b"fingerprint")


async def test_a_key_is_free_again_when_its_request_failed_or_its_server_died(store: Store) -> None:
    for _ in range(2):
        job_id = await submit.reserve(store.runtime, "p", "failed")
        assert isinstance(job_id, str)
        with pytest.raises(RuntimeError):
            async with store.receiving(job_id=job_id, key="failed") as intake:
                await intake.add(lines_of(5))
                raise RuntimeError
    first = await submit.reserve(store.runtime, "p", "died")
    async with store.runtime.database.write() as connection:
        await connection.execute(update(IdempotencyKey).values(expires_at=db_now() - 1))
    second = await submit.reserve(store.runtime, "p", "died")
    assert isinstance(first, str) and isinstance(second, str) and first != second


async def test_an_upload_that_lost_its_key_to_a_retry_makes_no_second_job(store: Store) -> None:
    """The first server was frozen past its lease; the caller's retry has been accepted; then the first one wakes."""
    first = await submit.reserve(store.runtime, "p", "key")
    assert isinstance(first, str)
    with pytest.raises(Conflict):
        async with store.receiving(job_id=first, key="key") as frozen:
            await frozen.add(lines_of(5))
            async with store.runtime.database.write() as connection:
                await connection.execute(update(IdempotencyKey).values(expires_at=db_now() - 1))
            second = await submit.reserve(store.runtime, "p", "key")
            assert isinstance(second, str)
            async with store.receiving(job_id=second, key="key") as retry:
                await retry.add(lines_of(5))
                await retry.finish(b"fingerprint")
            await frozen.finish(b"fingerprint")
    assert await submit.reserve(store.runtime, "p", "key") == Replay(retry.job_id, b"fingerprint")
    assert await store.count(Job, Job.deleted_at.is_(None), Job.status == JobStatus.IN_PROGRESS) == 1


async def test_the_last_beat_of_an_upload_does_not_bring_its_lease_back(database_url: str, tmp_path: Path) -> None:
    """It beats until the answer is out, which takes a while where the broker is slow: the corpus is whole by then."""
    store = Store.open(database_url, tmp_path, heartbeat_s=0.01)
    job_id = await submit.reserve(store.runtime, "p", "key")
    assert isinstance(job_id, str)
    async with store.receiving(job_id=job_id, key="key") as intake:
        await intake.add(lines_of(25))
        await intake.finish(b"fingerprint")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await intake.keep_alive()
    assert (await store.job(job_id)).intake_until is None
    async with store.runtime.database.read() as connection:
        left_s = (await connection.execute(select(IdempotencyKey.expires_at - db_now()))).scalar_one()
    assert left_s > store.runtime.settings.lease_s * 2
    await store.close()
