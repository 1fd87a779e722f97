"""Pause, resume and retry, at each state a job can be in, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from api.jobs.render import job_object
from engine.corpus.lines import ParsedRecords
from engine.job_store import JobStore
from engine.jobs.control import pause_resume, termination
from engine.jobs.control.retry import retry
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.maintenance.sweep import WorkerCrashed
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.record_outcomes import fail_remaining, record
from models.base import db_now
from models.errors import Conflict, InvalidInput, JobNotFound
from models.job import JobInputError, JobStatus, ShardState
from providers.fake import fake_vectors
from tests.integration.store import ATTEMPTS, UPSTREAM_MODEL, WIDTH, Store, landed, refused, text_of
from tests.integration.test_ending import checked, some_lines
from tests.integration.test_run import scripted
from tests.running import dispatch, run_shard, sweep

ENDED = (
    JobStatus.COMPLETED,
    JobStatus.COMPLETED_WITH_ERRORS,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
    JobStatus.EXPIRED,
)


async def brought_to(store: Store, status: JobStatus) -> str:
    """A job in this status, of three shards; where it runs or lets go, somebody holds its first."""
    job_id = await store.submit(30)
    if status in (JobStatus.COMPLETED, JobStatus.COMPLETED_WITH_ERRORS, JobStatus.FAILED):
        good = {JobStatus.COMPLETED: 10, JobStatus.COMPLETED_WITH_ERRORS: 8, JobStatus.FAILED: 0}[status]
        await work(store, await store.claim_all(job_id), good=range(good))
    elif status == JobStatus.CANCELLED:
        await termination.cancel(store.jobs, "p", job_id)
    elif status == JobStatus.EXPIRED:
        await termination.terminate(store.jobs, job_id, status, "job_expired", "too late")
    else:
        await store.claim((await store.shard_ids(job_id))[0])
        if status == JobStatus.PAUSED:
            await pause_resume.pause(store.jobs, "p", job_id)
        elif status == JobStatus.CANCELLING:
            await termination.cancel(store.jobs, "p", job_id)
    assert await store.status(job_id) == status
    return job_id


async def work(store: Store, holders: Sequence[ClaimedShard], *, good: Sequence[int] = range(10)) -> None:
    for held in holders:
        waiting = held.open_positions()
        kept = [position for position in waiting if position in good]
        parts = landed(held, kept, route=store.routes[0]) if kept else []
        await record(store.jobs, held, [*parts, *refused(held, [each for each in waiting if each not in good])])


def lines_of(texts: Iterable[str]) -> ParsedRecords:
    lines = ParsedRecords()
    for text in texts:
        lines.add(text)
    return lines


async def test_a_paused_job_is_neither_dispatched_nor_claimed_until_it_is_resumed(store: Store) -> None:
    job_id = await store.submit(30)
    before = (await store.job(job_id)).version
    for _ in range(2):
        await pause_resume.pause(store.jobs, "p", job_id)
    assert (await store.job(job_id)).version == before + 1
    assert {shard.state for shard in await store.shards(job_id)} == {ShardState.QUEUED}
    store.notifier.queued = 0
    await sweep(store.runtime)
    assert await dispatch(store.runtime) + store.notifier.queued == 0
    assert await claims.claim_next(store.jobs, "w") is None
    assert [await claims.claim(store.jobs, shard_id, "w") for shard_id in await store.shard_ids(job_id)] == [None] * 3
    for _ in range(2):
        await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    assert store.notifier.queued == 3
    await work(store, await store.claim_all(job_id))
    await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED


async def test_who_holds_a_shard_of_a_paused_job_keeps_what_lands_and_gives_the_rest_back_unspent(store: Store) -> None:
    job_id = await store.submit(20)
    one, two = await store.claim_all(job_id)
    await pause_resume.pause(store.jobs, "p", job_id)
    assert not (await record(store.jobs, one, landed(one, range(4), route=store.routes[0]))).job_active
    assert not await claims.heartbeat(store.jobs, two)
    for held in (one, two):
        await termination.drop_claim(store.jobs, held)
    snapshot = await checked(store, job_id)
    assert [(shard.state, shard.attempt) for shard in snapshot.shards] == [(ShardState.QUEUED, 0)] * 2
    assert await store.status(job_id) == JobStatus.PAUSED and snapshot.job is not None and snapshot.job.completed == 4
    await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    await work(store, await store.claim_all(job_id))
    snapshot = await checked(store, job_id)
    assert (
        snapshot.job is not None and snapshot.job.completed == 20 and sum(row.inputs for row in snapshot.ledger) == 20
    )


async def test_a_job_whose_last_call_lands_in_a_pause_ends(store: Store) -> None:
    job_id = await store.submit(10)
    (held,) = await store.claim_all(job_id)
    await pause_resume.pause(store.jobs, "p", job_id)
    await store.set_job(job_id, waiting_on="budget")
    assert (await record(store.jobs, held, landed(held, range(5), route=store.routes[0]))).shard_done is False
    assert (await store.job(job_id)).waiting_on == "budget"  # what lands does not take the reason away
    assert (await record(store.jobs, held, landed(held, range(5, 10), route=store.routes[0]))).shard_done
    snapshot = await checked(store, job_id)
    assert snapshot.job is not None and (snapshot.job.status, snapshot.job.waiting_on) == (JobStatus.COMPLETED, None)
    with pytest.raises(Conflict):
        await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)


async def test_pausing_while_the_corpus_arrives_stops_the_work_and_not_the_intake(store: Store) -> None:
    async with store.receiving() as intake:
        await intake.add(some_lines(25))
        await pause_resume.pause(store.jobs, "p", intake.job_id)
        await intake.add(lines_of(text_of("more", index) for index in range(25)))
        await intake.finish(b"fingerprint")
    job = await store.job(intake.job_id)
    assert (job.status, job.total, job.open_shards) == (JobStatus.PAUSED, 50, 5)
    await pause_resume.resume(store.jobs, "p", intake.job_id, dispatcher=store.dispatcher)
    await work(store, await store.claim_all(intake.job_id))
    assert await store.status(intake.job_id) == JobStatus.COMPLETED


async def test_an_intake_that_broke_off_in_a_pause_fails_the_job(store: Store) -> None:
    async with store.receiving() as intake:
        await intake.add(some_lines(25))
        await pause_resume.pause(store.jobs, "p", intake.job_id)
        await store.set_job(intake.job_id, upload_lease_until=db_now() - 1.0, upload_owner="elsewhere/b/n:1#x")
        await sweep(store.runtime)
        assert await store.status(intake.job_id) == JobStatus.FAILED
        with pytest.raises(Conflict, match="whole"):
            await retry(store.jobs, "p", intake.job_id, dispatcher=store.dispatcher)


@pytest.mark.fault(44)
@pytest.mark.parametrize("status", JobStatus)
async def test_what_may_be_asked_of_a_job_in_each_status(store: Store, status: JobStatus) -> None:
    if status == JobStatus.VALIDATING:
        pytest.skip("a job's row is written with its first shard: nobody sees it validating")
    resume, again = (partial(verb, dispatcher=store.dispatcher) for verb in (pause_resume.resume, retry))
    allowed: dict[Callable[[JobStore, str, str], Awaitable[None]], set[JobStatus]] = {
        pause_resume.pause: {JobStatus.IN_PROGRESS, JobStatus.PAUSED},
        resume: {JobStatus.PAUSED, JobStatus.IN_PROGRESS},
        again: {JobStatus.COMPLETED_WITH_ERRORS, JobStatus.FAILED},
        termination.cancel: {*(set(JobStatus) - set(ENDED)), JobStatus.CANCELLED},
        termination.delete_job: set(JobStatus),
    }
    for verb, where in allowed.items():
        job_id = await brought_to(store, status)
        if status in where:
            await verb(store.jobs, "p", job_id)
        else:
            with pytest.raises(Conflict) as refusal:
                await verb(store.jobs, "p", job_id)
            assert not refusal.value.should_retry
            assert await store.status(job_id) == status
        await checked(store, job_id)


async def test_another_project_s_job_cannot_be_steered(store: Store) -> None:
    job_id = await store.submit()
    resume, again = (partial(verb, dispatcher=store.dispatcher) for verb in (pause_resume.resume, retry))
    for verb in (pause_resume.pause, resume, again):
        for project, name in (("q", job_id), ("p", "job_" + "0" * 32), ("p", "nonsense"), ("p", "job_\0")):
            with pytest.raises(JobNotFound):
                await verb(store.jobs, project, name)
    assert await store.status(job_id) == JobStatus.IN_PROGRESS


async def test_the_rate_after_a_pause_is_that_of_the_work_since(store: Store) -> None:
    job_id = await store.submit(20)
    one, two = await store.claim_all(job_id)
    await record(store.jobs, one, landed(one, route=store.routes[0]))
    await pause_resume.pause(store.jobs, "p", job_id)
    await termination.drop_claim(store.jobs, two)
    long_ago = (await store.job(job_id)).rate_sample_at - 7200.0
    await store.set_job(job_id, started_at=long_ago, rate_sample_at=long_ago)
    body = job_object(await get_job(store.jobs, "p", job_id))
    assert (body["rate"]["inputs_per_second"], body["eta_seconds"]) == (0.0, None)
    await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    job = await store.job(job_id)
    assert (job.rate_sample_at, job.prev_rate_sample_at) == (None, None)
    assert job_object(await get_job(store.jobs, "p", job_id))["rate"]["inputs_per_second"] == 0.0  # nothing yet
    again = await store.claim(two.shard_id)
    await record(store.jobs, again, landed(again, range(5), route=store.routes[0]))
    assert job_object(await get_job(store.jobs, "p", job_id))["eta_seconds"] is None  # for how long has it run?
    await store.set_job(job_id, rate_sample_at=db_now() - 10.0)
    assert 0.3 < job_object(await get_job(store.jobs, "p", job_id))["rate"]["inputs_per_second"] <= 0.5


async def test_a_new_ceiling_must_be_above_what_is_spent(store: Store) -> None:
    job_id = await brought_to(store, JobStatus.PAUSED)
    await store.set_job(job_id, cost_usd=Decimal("0.5"))
    for ceiling in ("0.5", "0.1"):
        with pytest.raises(InvalidInput, match=r"0\.5 already"):
            await pause_resume.resume(store.jobs, "p", job_id, Decimal(ceiling), dispatcher=store.dispatcher)
    assert await store.status(job_id) == JobStatus.PAUSED
    for ceiling in ("0.6", "0.7"):  # the second finds it running
        await pause_resume.resume(store.jobs, "p", job_id, Decimal(ceiling), dispatcher=store.dispatcher)
        job = await store.job(job_id)
        assert (job.status, job.max_cost_usd) == (JobStatus.IN_PROGRESS, Decimal(ceiling))


async def test_a_retry_runs_what_failed_and_nothing_else(store: Store) -> None:
    job_id = await store.submit(30, bad={3, 17})
    await work(store, await store.claim_all(job_id), good=(0, 1, 2, 4, 6))
    before = await checked(store, job_id)
    assert before.job is not None and (before.job.status, before.job.failed) == ("completed_with_errors", 15)
    await store.set_job(job_id, expires_at=db_now() + 5.0)
    await retry(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    after = await checked(store, job_id)
    assert after.job is not None
    job = after.job
    assert (job.status, job.finished_at, job.open_shards) == ("in_progress", None, 3)
    assert (job.completed, job.failed, job.version) == (before.job.completed, 2, before.job.version + 1)
    assert job.expires_at > before.job.expires_at and sorted(after.with_error) == [3, 17]
    assert [(entry["count"], entry["example_index"]) for entry in job.error_summary] == [(2, 3)]
    assert sorted(after.with_vector) == sorted(before.with_vector) and after.ledger == before.ledger
    assert {(shard.state, shard.attempt, shard.worker_crashes) for shard in after.shards} == {(ShardState.QUEUED, 0, 0)}
    with pytest.raises(Conflict, match="in_progress"):
        await retry(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    holders = await store.claim_all(job_id)
    assert [held.open_positions() for held in holders] == [[5, 7, 8, 9], [3, 5, 8, 9], [3, 5, 7, 8, 9]]
    await work(store, holders)
    done = await checked(store, job_id)
    assert done.job is not None and (done.job.status, done.job.failed) == ("completed_with_errors", 2)
    assert sum(row.inputs for row in done.ledger) == 28 and set(before.ledger) <= set(done.ledger)
    with pytest.raises(Conflict, match="refused when it arrived"):
        await retry(store.jobs, "p", job_id, dispatcher=store.dispatcher)


async def test_a_job_that_failed_whole_is_tried_again_whole(store: Store) -> None:
    job_id = await store.submit(30)
    for shard_id in await store.shard_ids(job_id):
        await store.set_shard(shard_id, attempt=ATTEMPTS, worker_crashes=2, last_error="x")
    for held in await store.claim_all(job_id):
        await fail_remaining(store.jobs, held, WorkerCrashed("gone"))
    assert await store.status(job_id) == JobStatus.FAILED
    await retry(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    await work(store, await store.claim_all(job_id))
    snapshot = await checked(store, job_id)
    assert snapshot.job is not None and snapshot.job.status == JobStatus.COMPLETED and snapshot.job.error_summary == []


async def test_duplicates_that_failed_with_their_first_are_tried_again_with_it(
    database_url: str, tmp_path: Path
) -> None:
    """One in the shard of the first, one in another; the provider has got well meanwhile."""
    ill = scripted(database_url, tmp_path, '{when = {contains = "number 3 "}, do = {status = 400}}')
    texts = [text_of("text", 3 if index in (5, 15) else index) for index in range(20)]
    async with ill.receiving() as intake:
        await intake.add(lines_of(texts))
        await intake.finish(b"fingerprint")
    job_id = intake.job_id
    well = scripted(database_url, tmp_path)
    for store, failed in ((ill, [3, 5, 15]), (well, list[int]())):
        for shard_id in (await store.shard_ids(job_id)) * 2:
            await store.set_shard(shard_id, next_run_at=0.0)
            await run_shard(store.runtime, shard_id, "w")
        snapshot = await checked(store, job_id)
        assert sorted(snapshot.with_error) == failed and snapshot.job is not None
        if failed:
            await retry(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    assert snapshot.job is not None and (snapshot.job.status, snapshot.job.deduplicated) == (JobStatus.COMPLETED, 2)
    snapshot.check(lambda indexes: fake_vectors([texts[index] for index in indexes], WIDTH, UPSTREAM_MODEL))
    for store in (ill, well):
        await store.close()


async def test_of_many_retries_at_once_one_counts(store: Store) -> None:
    other = store.another()
    job_id = await brought_to(store, JobStatus.COMPLETED_WITH_ERRORS)
    version = (await store.job(job_id)).version
    outcomes = await asyncio.gather(
        *(retry(each.jobs, "p", job_id, dispatcher=each.dispatcher) for each in (store, other) * 3),
        return_exceptions=True,
    )
    assert [type(each) for each in outcomes if each is not None] == [Conflict] * 5
    snapshot = await checked(store, job_id)
    assert snapshot.job is not None and snapshot.job.version == version + 1 and snapshot.job.failed == 0
    await other.close()


async def test_who_held_a_shard_before_a_retry_can_fail_nothing_of_it(store: Store) -> None:
    job_id = await store.submit(10)
    (zombie,) = await store.claim_all(job_id)
    await work(store, [zombie], good=range(6))
    await retry(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    await record(store.jobs, zombie, refused(zombie, [7]))
    await fail_remaining(store.jobs, zombie, WorkerCrashed("gone"))
    assert not await claims.heartbeat(store.jobs, zombie)
    await claims.release(store.jobs, zombie, delay_s=9, counts_as_attempt=True, reason="", waiting_on="quota")
    await termination.drop_claim(store.jobs, zombie)
    assert await store.count(JobInputError, JobInputError.job_id == job_id) == 0
    await record(store.jobs, zombie, landed(zombie, [8], route=store.routes[0]))  # it was paid for
    (held,) = await store.claim_all(job_id)
    assert held.open_positions() == [6, 7, 9]
    await work(store, [held])
    snapshot = await checked(store, job_id)
    assert snapshot.job is not None and snapshot.job.status == JobStatus.COMPLETED


async def test_retry_and_delete_at_once_leave_no_job_that_nobody_removes(store: Store) -> None:
    other = store.another()
    for _ in range(3):
        job_id = await brought_to(store, JobStatus.COMPLETED_WITH_ERRORS)
        await asyncio.gather(
            retry(other.jobs, "p", job_id, dispatcher=other.dispatcher),
            termination.delete_job(store.jobs, "p", job_id),
            return_exceptions=True,
        )
        for _ in range(6):
            await sweep(store.runtime)
        assert await store.count(JobInputError, JobInputError.job_id == job_id) == 0
        with pytest.raises(IndexError):
            await store.job(job_id)
    await other.close()


async def test_a_retried_job_is_not_closed_by_one_who_knows_no_better(store: Store) -> None:
    """The sweep chose it as a finished job with stray shards, and comes a moment late."""
    job_id = await brought_to(store, JobStatus.COMPLETED_WITH_ERRORS)
    await retry(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    await termination.cancel_idle_shards(store.jobs, job_id)
    states: set[Any] = {shard.state for shard in await store.shards(job_id)}
    assert ShardState.CANCELLED not in states
