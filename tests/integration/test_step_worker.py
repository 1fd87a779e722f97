"""The loop of steps: whose step is next, what becomes of one that breaks off, and how a process stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import insert, select, update

from engine.batches import worker
from engine.batches.failure import fail_step
from engine.batches.steps import (
    ClaimedStep,
    StepParts,
    StepStopped,
    claim_step,
    end_step,
    lock_step,
    move_step,
    release_step,
    renew_step,
    store_progress,
)
from engine.batches.worker import StepWorker
from models.base import db_now
from models.batch import JobStep, StepKind
from models.errors import InvalidInput, ObjectsUnavailable, StorageUnavailable
from models.job import Job, JobStatus
from tests.integration.batches import request, step_parts
from tests.integration.new_batches import NewBatch, new_batch
from tests.integration.store import MODEL, Store
from tests.waiting import until

Run = Callable[[StepParts, ClaimedStep], Awaitable[None]]


def steps_of(store: Store, run: Run, draining: asyncio.Event | None = None) -> StepWorker:
    """A loop whose steps are all this function."""
    functions = dict.fromkeys(StepKind, run)
    return StepWorker(step_parts(store), "w", draining or asyncio.Event(), functions)


async def some_batch(store: Store, project: str = "p") -> NewBatch:
    batch = await new_batch(store, [request("a", "text", MODEL)], has_webhook=project == "p")
    if project != "p":
        async with store.database.write() as connection:
            await connection.execute(update(JobStep).where(JobStep.job_id == batch.job_id).values(project=project))
    return batch


@asynccontextmanager
async def looping(steps: StepWorker, draining: asyncio.Event) -> AsyncIterator[None]:
    loop = asyncio.create_task(steps.run())
    try:
        yield
    finally:
        draining.set()
        await asyncio.wait_for(loop, 10)


async def make_due(store: Store) -> None:
    async with store.database.write() as connection:
        await connection.execute(update(JobStep).values(due_at=db_now() - 1))


async def test_the_project_with_the_fewest_running_steps_is_next(store: Store) -> None:
    for _ in range(3):
        await some_batch(store, "greedy")
    first = await claim_step(store.jobs, "w1")
    modest = await some_batch(store, "modest")
    second, third = await claim_step(store.jobs, "w2"), await claim_step(store.jobs, "w3")
    assert first is not None and second is not None and third is not None
    assert (first.project, second.project, third.project) == ("greedy", "modest", "greedy")
    assert second.job_id == modest.job_id
    assert await claim_step(store.jobs, "w4", {"greedy"}) is None


async def test_a_claim_that_has_ended_changes_nothing(store: Store) -> None:
    batch = await some_batch(store)
    old = await batch.claim()
    assert await renew_step(store.jobs, old)
    await batch.let_lease_pass()
    new = await batch.claim()
    assert not await renew_step(store.jobs, old)
    await release_step(store.jobs, old, delay_s=100, counts_as_attempt=True)
    changes: list[Callable[..., Awaitable[None]]] = [
        lock_step,
        end_step,
        lambda connection, step: store_progress(connection, step, {"a": 1}),
        lambda connection, step: move_step(connection, step, StepKind.INGEST),
    ]
    for change in changes:
        with pytest.raises(StepStopped):
            async with store.database.write() as connection:
                await change(connection, old)
    row = await batch.step()
    assert (row.fence, row.kind, row.progress) == (new.fence, "validate", None) and row.lease_until is not None
    async with store.database.write() as connection:
        await lock_step(connection, new)
        await store_progress(connection, new, {"a": 1})
    assert (await batch.step()).attempts == 0


async def test_a_worker_that_has_lost_its_step_fails_no_job(store: Store) -> None:
    job_id = await store.submit()  # a native job
    async with store.database.write() as connection:
        step = {"job_id": job_id, "project": "p", "kind": StepKind.INGEST, "due_at": db_now()}
        await connection.execute(insert(JobStep).values(**step))
    old = await claim_step(store.jobs, "w1")
    assert old is not None
    async with store.database.write() as connection:
        await connection.execute(update(JobStep).values(lease_until=db_now() - 1))
    new = await claim_step(store.jobs, "w2")
    assert new is not None
    with pytest.raises(StepStopped):
        await fail_step(step_parts(store), old, "object_missing", "the file is gone")
    assert await store.status(job_id) == "in_progress"
    await fail_step(step_parts(store), new, "object_missing", "the file is gone")
    assert await store.status(job_id) == "failed"
    assert await store.count(JobStep) == 0


async def test_a_step_of_a_deleted_job_is_neither_claimed_nor_renewed(store: Store) -> None:
    batch = await some_batch(store)
    step = await batch.claim()
    await store.set_job(batch.job_id, deleted_at=db_now())
    assert not await renew_step(store.jobs, step)
    await batch.let_lease_pass()
    assert await claim_step(store.jobs, "w") is None


async def test_a_step_that_breaks_off_is_tried_again_and_then_fails_its_batch(store: Store) -> None:
    runs = 0

    async def breaks(parts: StepParts, step: ClaimedStep) -> None:
        nonlocal runs
        runs += 1
        raise ValueError("a fault of ours")

    batch = await some_batch(store)
    steps = steps_of(store, breaks)
    for attempt in range(1, worker.MAX_ATTEMPTS + 1):
        assert await steps.run_next()
        row = await batch.step()
        assert (row.attempts, row.lease_until, row.last_error) == (attempt, None, "ValueError: a fault of ours")
        assert not await steps.run_next()  # not due yet
        await make_due(store)
    assert await steps.run_next()
    assert runs == worker.MAX_ATTEMPTS and await batch.step() is None
    row, job = await batch.row(), await batch.job()
    assert (row.status, job.status, row.error_count) == ("failed", "failed", 1)
    assert row.errors[0]["code"] == "processing_failed" and "6 attempts" in row.errors[0]["message"]
    assert job.error_summary[0]["code"] == "processing_failed" and job.finished_at is not None
    assert await batch.events() == ["batch.failed"]


async def test_workers_that_are_killed_on_a_step_again_and_again_fail_it(store: Store) -> None:
    async def never(parts: StepParts, step: ClaimedStep) -> None:
        raise AssertionError("the step is not run any more")

    batch = await some_batch(store)
    for _ in range(worker.MAX_ATTEMPTS):
        await batch.claim()
        await batch.let_lease_pass()
    assert await steps_of(store, never).run_next()
    assert (await batch.row()).errors[0]["code"] == "processing_failed"


async def test_progress_starts_the_attempts_anew(store: Store) -> None:
    async def advances(parts: StepParts, step: ClaimedStep) -> None:
        async with parts.store.database.write() as connection:
            await store_progress(connection, step, {"n": (step.progress or {"n": 0})["n"] + 1})
        raise ValueError("after a part of the work")

    batch = await some_batch(store)
    for count in range(1, 2 * worker.MAX_ATTEMPTS):
        assert await steps_of(store, advances).run_next()
        row = await batch.step()
        assert (row.progress, row.attempts) == ({"n": count}, 0)
        await make_due(store)


@pytest.mark.parametrize("error", [StorageUnavailable("away"), ObjectsUnavailable("away")])
async def test_an_outage_is_outwaited_and_costs_no_attempt(store: Store, error: Exception) -> None:
    async def fails(parts: StepParts, step: ClaimedStep) -> None:
        raise error

    batch = await some_batch(store)
    for _ in range(2 * worker.MAX_ATTEMPTS):
        assert await steps_of(store, fails).run_next()
        assert (await batch.step()).attempts == 0
        await make_due(store)
    assert (await batch.row()).status == "validating"


async def test_a_file_that_cannot_be_read_fails_its_batch_at_once(store: Store) -> None:
    async def refuses(parts: StepParts, step: ClaimedStep) -> None:
        raise InvalidInput("no such columns", code="unreadable_corpus")

    batch = await some_batch(store)
    assert await steps_of(store, refuses).run_next()
    row = await batch.row()
    assert (row.status, row.errors) == (
        "failed",
        [{"code": "unreadable_corpus", "message": "no such columns", "param": None, "line": None}],
    )


async def test_one_bad_step_does_not_delay_others(store: Store) -> None:
    """One hangs, one breaks off each time, and the third project's step is done."""
    done: list[str] = []
    draining = asyncio.Event()

    async def run(parts: StepParts, step: ClaimedStep) -> None:
        if step.project == "hangs":
            await draining.wait()
            step.check()
        if step.project == "breaks":
            raise ValueError("again")
        async with parts.store.database.write() as connection:
            await end_step(connection, step)
        done.append(step.project)

    for project in ("hangs", "breaks", "works"):
        await some_batch(store, project)
    async with looping(steps_of(store, run, draining), draining):
        await until(lambda: "works" in done, 10)
    async with store.database.read() as connection:
        rows = (await connection.execute(select(JobStep.project, JobStep.lease_until, JobStep.attempts))).all()
    left = {row.project: (row.lease_until, row.attempts) for row in rows}
    assert set(left) == {"hangs", "breaks"} and left["hangs"] == (None, 0)


async def test_a_draining_process_stops_its_steps_and_starts_none(store: Store) -> None:
    draining, started = asyncio.Event(), asyncio.Event()

    async def works_until_stopped(parts: StepParts, step: ClaimedStep) -> None:
        started.set()
        while True:
            await asyncio.sleep(0.01)
            step.check()

    batch = await some_batch(store)
    async with looping(steps_of(store, works_until_stopped, draining), draining):
        await asyncio.wait_for(started.wait(), 10)
        await some_batch(store, "another")
    row = await batch.step()
    assert (row.lease_until, row.worker, row.attempts) == (None, None, 0)
    assert await claim_step(store.jobs, "w2") is not None


async def test_a_lost_lease_stops_the_step(database_url: str, store: Store) -> None:
    parts = step_parts(store)
    quick = Store.open(database_url, store.runtime.settings.data_dir, lease_s=0.4)
    started, stopped = asyncio.Event(), asyncio.Event()

    async def works(parts: StepParts, step: ClaimedStep) -> None:
        started.set()
        await until(step.must_stop, 10)
        stopped.set()
        step.check()

    assert parts.store is store.jobs
    batch = await some_batch(store)
    running = asyncio.create_task(steps_of(quick, works).run_next())
    try:
        await asyncio.wait_for(started.wait(), 10)
        lease = (await batch.step()).lease_until
        await until(lambda: _renewed(batch, lease), 10)
        await store.set_job(batch.job_id, status="cancelled")
        await asyncio.wait_for(stopped.wait(), 10)
        await asyncio.wait_for(running, 10)
    finally:
        await quick.close()


async def _renewed(batch: NewBatch, lease: float) -> bool:
    return bool((await batch.step()).lease_until > lease)


async def test_the_next_step_of_a_job_does_not_wait_for_the_next_poll(store: Store) -> None:
    """Polls are far apart here: the second step is found because the first one has succeeded."""
    batch, kinds, draining = await some_batch(store), [], asyncio.Event()

    async def run(parts: StepParts, step: ClaimedStep) -> None:
        kinds.append(step.kind)
        async with parts.store.database.write() as connection:
            await lock_step(connection, step)
            if step.kind == StepKind.VALIDATE:
                await connection.execute(update(Job).where(Job.id == batch.job_id).values(status=JobStatus.IN_PROGRESS))
                await move_step(connection, step, StepKind.INGEST)
            else:
                await end_step(connection, step)

    steps = StepWorker(step_parts(store), "w", draining, dict.fromkeys(StepKind, run), poll_every_s=600.0)
    async with looping(steps, draining):
        await until(lambda: len(kinds) == 2, 20)
    assert kinds == [StepKind.VALIDATE, StepKind.INGEST]
