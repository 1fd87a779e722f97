"""Deadlines and retention: when a job expires, and how long it is kept, on both databases."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from engine.jobs.control import pause_resume, termination
from engine.jobs.control.retry import retry
from engine.jobs.maintenance.sweep import LATE_RESULTS_S
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.record_outcomes import record
from models.base import db_now
from models.errors import Conflict
from models.job import JobStatus
from tests.integration.store import Store, landed
from tests.integration.test_control import brought_to, work
from tests.integration.test_run import scripted
from tests.running import run_shard, sweep


@pytest.mark.parametrize("status", [JobStatus.PAUSED, JobStatus.IN_PROGRESS])
async def test_a_job_that_does_not_end_by_its_deadline_expires_and_is_kept(store: Store, status: JobStatus) -> None:
    job_id = await brought_to(store, status)
    other = await brought_to(store, status)
    await store.set_job(job_id, expires_at=db_now() - 1.0)
    for shard_id in await store.shard_ids(job_id):
        await store.expire_lease(shard_id)
    for _ in range(4):
        await sweep(store.runtime)
    job = await get_job(store.jobs, "p", job_id)
    assert (job.status, job.open_shards) == (JobStatus.EXPIRED, 0)
    assert (job.error_summary, [entry["code"] for entry in job.warnings]) == ([], ["job_expired"])
    days = store.runtime.settings.job_retention_days
    assert job.expires_at - job.finished_at == pytest.approx(days * 86400.0, abs=1.0)
    resume, again = (partial(verb, dispatcher=store.dispatcher) for verb in (pause_resume.resume, retry))
    for verb in (resume, pause_resume.pause, termination.cancel, again):
        with pytest.raises(Conflict):
            await verb(store.jobs, "p", job_id)
    assert await store.status(other) == status
    await termination.delete_job(store.jobs, "p", job_id)


@pytest.mark.parametrize(("good", "status"), [(10, "completed"), (8, "completed_with_errors"), (0, "failed")])
async def test_a_job_whose_last_inputs_land_after_its_deadline_ends_by_them(
    store: Store, good: int, status: JobStatus
) -> None:
    job_id = await store.submit(30)
    held = await store.claim_all(job_id)
    await work(store, held[:2], good=range(good))
    await store.set_job(job_id, expires_at=db_now() - 1.0)
    await sweep(store.runtime)
    assert await store.status(job_id) == JobStatus.IN_PROGRESS
    await work(store, held[2:], good=range(good))
    await sweep(store.runtime)
    job = await get_job(store.jobs, "p", job_id)
    assert (job.status, job.open_shards) == (status, 0)
    assert all(entry["count"] for entry in job.error_summary) and job.warnings == []


async def test_a_job_does_not_wait_for_ever_for_what_workers_hold(store: Store) -> None:
    job_id = await store.submit(30)
    held = await store.claim_all(job_id)
    await work(store, held[:2])
    await store.set_job(job_id, expires_at=db_now() - LATE_RESULTS_S - 1.0)
    await sweep(store.runtime)
    job = await get_job(store.jobs, "p", job_id)
    assert job.status == JobStatus.EXPIRED
    assert (job.error_summary, [entry["code"] for entry in job.warnings]) == ([], ["job_expired"])


@pytest.mark.parametrize("good", [10, 8, 0])
async def test_a_job_with_every_outcome_never_expires(store: Store, good: int) -> None:
    """Whoever ends it: its counters say that nothing is left."""
    job_id = await store.submit(30)
    held = await store.claim_all(job_id)
    await work(store, held[:2], good=range(good))
    await store.set_job(job_id, completed=3 * good, failed=30 - 3 * good)
    assert await termination.terminate(store.jobs, job_id, JobStatus.EXPIRED, "job_expired", "too late")
    job = await get_job(store.jobs, "p", job_id)
    assert job.status == {10: "completed", 8: "completed_with_errors", 0: "failed"}[good]
    assert all(entry["count"] for entry in job.error_summary)


async def test_an_upload_that_expires_with_all_of_it_done_has_no_empty_error(store: Store) -> None:
    job_id = await store.submit(30)
    await work(store, (await store.claim_all(job_id))[:2])
    await store.set_job(job_id, total=None, ingested=20, expires_at=db_now() - 1.0)
    await sweep(store.runtime)
    job = await get_job(store.jobs, "p", job_id)
    assert (job.status, job.error_summary) == (JobStatus.EXPIRED, [])
    assert [entry["code"] for entry in job.warnings] == ["job_expired"]


async def test_retention_counts_from_the_end(store: Store) -> None:
    """However long it took: it was made long before its retention, and ends now."""
    jobs = {"done": await store.submit(10), "cancelled": await store.submit(10), "failed": await store.submit(10)}
    held = {name: (await store.claim_all(job_id))[0] for name, job_id in jobs.items()}
    for job_id in jobs.values():
        await store.set_job(job_id, created_at=db_now() - 90 * 86400.0)
    for _ in range(2):
        await sweep(store.runtime)
    await record(store.jobs, held["done"], landed(held["done"], route=store.routes[0]))
    await termination.cancel(store.jobs, "p", jobs["cancelled"])
    await termination.drop_claim(store.jobs, held["cancelled"])
    await termination.terminate(store.jobs, jobs["failed"], JobStatus.FAILED, "x", "y")
    for _ in range(2):
        await sweep(store.runtime)
    for name, job_id in jobs.items():
        job = await get_job(store.jobs, "p", job_id)
        assert job.finished_at is not None and job.expires_at - job.finished_at > 29 * 86400.0, name


@pytest.mark.parametrize("seconds_left", [-1.0, 0.4])
async def test_a_running_shard_starts_no_call_after_the_deadline(
    database_url: str, tmp_path: Path, seconds_left: float
) -> None:
    """Each call takes 0.25 s, one at a time: some of ten start in 0.4 s, and none once the time is over."""
    store = scripted(database_url, tmp_path, "{do = {latency_ms = 250.0}}", shard_concurrency=1, shard_inputs=40)
    job_id = await store.submit(40)
    [shard_id] = await store.shard_ids(job_id)
    await store.set_job(job_id, expires_at=db_now() + seconds_left)
    assert await run_shard(store.runtime, shard_id, "w")
    job = await get_job(store.jobs, "p", job_id)
    assert job.status == JobStatus.IN_PROGRESS
    assert (0 < job.completed < 40) if seconds_left > 0 else not job.completed
    assert not await run_shard(store.runtime, shard_id, "w")  # it is not due before the sweep has come
    await sweep(store.runtime)
    job = await get_job(store.jobs, "p", job_id)
    assert (job.status, job.open_shards) == (JobStatus.EXPIRED, 0)
    await store.close()
