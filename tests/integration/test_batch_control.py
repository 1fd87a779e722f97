"""A batch and its job are one thing: cancel, retry, resume, expiry and delete of the job act on the batch too."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import insert, select, text, update

from engine.batches.batch_rows import get_batch
from engine.batches.failure import fail_step
from engine.batches.output import write_output
from engine.batches.output_end import end_batch
from engine.batches.output_progress import OutputProgress
from engine.batches.output_source import OutputSource
from engine.batches.steps import StepStopped
from engine.files.composition import files_of
from engine.files.purge import purge_files
from engine.files.read import get_file
from engine.jobs.control.pause_resume import pause, resume
from engine.jobs.control.retry import retry
from engine.jobs.control.termination import cancel, delete_job
from engine.jobs.recording.record_outcomes import record
from models.base import db_now
from models.batch import Batch, BatchStatus, JobStep, JobVariant, StepKind
from models.errors import Conflict
from models.file import File, FilePart
from models.file_errors import BatchNotFound, FileNotFound
from models.job import Job, JobStatus
from tests.integration.batches import PROJECT, RunBatch, request, run_batch
from tests.integration.store import Store, landed
from tests.integration.test_batch_output import files
from tests.running import sweep
from tests.waiting import until

FAILURES = {"text 7": "upstream_unavailable", "text 13": "upstream_unavailable"}
DAY_S = 86400


async def failed_in_part(store: Store) -> RunBatch:
    return await run_batch(store, b"\n".join(files(30)), failures=FAILURES, status=JobStatus.COMPLETED_WITH_ERRORS)


async def finish_shards(store: Store, job_id: str) -> None:
    """Do what workers would with the shards that are queued."""
    for shard in await store.shards(job_id):
        if shard.state == "queued":
            held = await store.claim(shard.id)
            await record(store.jobs, held, landed(held, route=store.routes[0]))


async def step_kind(store: Store) -> str | None:
    async with store.database.read() as connection:
        return (await connection.execute(select(JobStep.kind))).scalar_one_or_none()


async def test_a_retry_writes_new_files(store: Store) -> None:
    batch = await failed_in_part(store)
    first = await batch.write()
    assert (first.completed, first.failed) == (28, 2) and first.error_file_id is not None
    await retry(store.jobs, PROJECT, batch.job_id, dispatcher=store.dispatcher)
    row = await batch.row()
    assert (row.status, row.output_file_id, row.error_file_id) == (BatchStatus.IN_PROGRESS, None, None)
    assert (row.finalizing_at, row.completed_at) == (None, None) and row.expires_at > first.expires_at - DAY_S
    assert await step_kind(store) == StepKind.RUN
    await finish_shards(store, batch.job_id)
    again = await batch.write()
    assert (again.status, again.error_file_id) == (BatchStatus.COMPLETED, None)
    assert (again.completed, again.failed) == (30, 0) and again.completed_at >= again.finalizing_at
    lines = await batch.lines(again.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"id-{i}" for i in range(30)]
    tokens = (await store.job(batch.job_id)).prompt_tokens
    assert sum(line["response"]["body"]["usage"]["total_tokens"] for line in lines) == tokens
    # The ids of lines stay: a reader of both files sees which are the same requests.
    ids = {line["custom_id"]: line["id"] for line in await batch.lines(first.output_file_id)}
    assert ids.items() <= {line["custom_id"]: line["id"] for line in lines}.items()


async def test_a_retry_takes_a_half_written_output_back(store: Store) -> None:
    batch = await failed_in_part(store)
    step = await batch.claim()
    calls = iter([False] * 3)
    stopping = replace(step, must_stop=lambda: next(calls, True))
    with pytest.raises(StepStopped):
        await write_output(batch.parts(), stopping, part_bytes=200)
    assert await store.count(FilePart, FilePart.owner_id == f"{batch.id}:output") > 0
    await retry(store.jobs, PROJECT, batch.job_id, dispatcher=store.dispatcher)
    assert await store.count(FilePart, FilePart.owner_id.like("batch%")) == 0
    await write_output(batch.parts(), step)  # by a worker that does not know it yet
    assert await step_kind(store) == StepKind.RUN
    await finish_shards(store, batch.job_id)
    with pytest.raises(StepStopped):
        await write_output(batch.parts(), step)
    row = await batch.write()
    assert (row.completed, row.failed, row.status) == (30, 0, BatchStatus.COMPLETED)
    assert len(await batch.lines(row.output_file_id)) == 30


async def test_a_retry_of_lines_that_were_refused_changes_nothing(store: Store) -> None:
    batch = await run_batch(store, b"\n".join([request("a", "a"), b"no json"]), is_lenient=True)
    row = await batch.write()
    with pytest.raises(Conflict):
        await retry(store.jobs, PROJECT, batch.job_id, dispatcher=store.dispatcher)
    assert await batch.row() == row and await step_kind(store) is None


async def test_a_retry_needs_the_input_file(store: Store) -> None:
    batch = await failed_in_part(store)
    row = await batch.write()
    async with store.database.write() as connection:
        await connection.execute(update(File).where(File.id == row.input_file_id).values(deleted_at=db_now()))
    await purge_files(files_of(store.runtime))
    with pytest.raises(Conflict, match="input file"):
        await retry(store.jobs, PROJECT, batch.job_id, dispatcher=store.dispatcher)
    assert await batch.row() == row and await step_kind(store) is None
    assert await store.status(batch.job_id) == JobStatus.COMPLETED_WITH_ERRORS


async def test_a_retry_keeps_a_deleted_input_file_until_the_output_is_written(store: Store) -> None:
    batch = await failed_in_part(store)
    row = await batch.write()
    async with store.database.write() as connection:
        await connection.execute(update(File).where(File.id == row.input_file_id).values(deleted_at=db_now()))
    await retry(store.jobs, PROJECT, batch.job_id, dispatcher=store.dispatcher)
    await purge_files(files_of(store.runtime))
    await finish_shards(store, batch.job_id)
    row = await batch.write()
    assert (row.status, row.completed) == (BatchStatus.COMPLETED, 30)


async def test_a_step_that_fails_for_good_leaves_no_parts(store: Store) -> None:
    batch = await failed_in_part(store)
    step = await batch.claim()
    calls = iter([False] * 3)
    stopping = replace(step, must_stop=lambda: next(calls, True))
    with pytest.raises(StepStopped):
        await write_output(batch.parts(), stopping, part_bytes=200)
    assert await store.count(FilePart, FilePart.owner_id.like("batch%")) > 0
    await fail_step(batch.parts(), step, "processing_failed", "it failed again and again")
    row = await batch.row()
    assert (row.status, row.output_file_id, row.errors[0]["code"]) == (BatchStatus.FAILED, None, "processing_failed")
    assert await store.count(FilePart, FilePart.owner_id.like("batch%")) == 0


async def running(store: Store) -> RunBatch:
    """A batch whose job runs."""
    batch = await run_batch(store, b"\n".join(files(30)), status=JobStatus.IN_PROGRESS, not_run={"text 7"})
    await store.set_job(batch.job_id, finished_at=None, open_shards=1)
    for shard in await store.shards(batch.job_id):
        if shard.state == "cancelled":
            await store.set_shard(shard.id, state="queued")
    return batch


async def test_a_cancel_of_the_job_cancels_the_batch(store: Store) -> None:
    batch = await running(store)
    await cancel(store.jobs, PROJECT, batch.job_id)
    assert await store.status(batch.job_id) == JobStatus.CANCELLED
    row = await batch.row()
    assert row.status == BatchStatus.CANCELLING and row.cancelling_at is not None
    row = await batch.write()
    assert row.status == BatchStatus.CANCELLED and row.cancelling_at <= row.cancelled_at
    assert (row.completed, row.failed) == (29, 1)
    assert [line["error"]["code"] for line in await batch.lines(row.error_file_id)] == ["batch_cancelled"]


async def test_a_resume_keeps_the_window(store: Store) -> None:
    batch = await running(store)
    before = (await store.job(batch.job_id)).expires_at
    await pause(store.jobs, PROJECT, batch.job_id)
    assert (await batch.row()).status == BatchStatus.IN_PROGRESS
    await resume(store.jobs, PROJECT, batch.job_id, dispatcher=store.dispatcher)
    job = await store.job(batch.job_id)
    assert (job.status, job.expires_at) == (JobStatus.IN_PROGRESS, before)


async def test_the_end_of_the_window_keeps_what_was_done(store: Store) -> None:
    batch = await running(store)
    await store.set_job(batch.job_id, expires_at=db_now() - 1)
    await sweep(store.runtime)
    job = await store.job(batch.job_id)
    assert job.status == JobStatus.EXPIRED and "completion window" in job.warnings[-1]["message"]
    row = await batch.write()
    assert row.status == BatchStatus.EXPIRED and row.finalizing_at <= row.expired_at
    assert (row.completed, row.failed) == (29, 1)
    assert [line["error"]["code"] for line in await batch.lines(row.error_file_id)] == ["batch_expired"]


@pytest.mark.parametrize("is_inline", [False, True])
async def test_a_delete_of_the_job_deletes_the_batch_and_its_files(store: Store, is_inline: bool) -> None:
    batch = await failed_in_part(store)
    async with store.database.write() as connection:
        await connection.execute(update(Batch).values(is_inline=is_inline))
    row = await batch.write()
    await delete_job(store.jobs, PROJECT, batch.job_id)
    with pytest.raises(BatchNotFound):
        await get_batch(store.jobs, PROJECT, batch.id)
    for file_id in (row.output_file_id, row.error_file_id):
        with pytest.raises(FileNotFound):
            await get_file(files_of(store.runtime), PROJECT, file_id)
    async with store.database.read() as connection:
        own = File.id == row.input_file_id
        deleted_at = (await connection.execute(select(File.deleted_at).where(own))).scalar_one()
    assert (deleted_at is not None) == is_inline
    await sweep(store.runtime)
    await sweep(store.runtime)
    assert [await store.count(table) for table in (Job, Batch, JobVariant, JobStep)] == [0, 0, 0, 0]


async def test_a_delete_while_the_output_is_written_leaves_no_parts(store: Store) -> None:
    batch = await failed_in_part(store)
    step = await batch.claim()
    async with store.database.write() as connection:
        for owner in ("output", "error"):
            await connection.execute(
                insert(FilePart).values(
                    id=f"part_{owner}", project=PROJECT, owner_id=f"{batch.id}:{owner}", ordinal=0, created_at=db_now()
                )
            )
    await delete_job(store.jobs, PROJECT, batch.job_id)
    with pytest.raises(StepStopped):
        await write_output(batch.parts(), step)
    await sweep(store.runtime)
    await sweep(store.runtime)
    assert [await store.count(table) for table in (Job, Batch, JobStep)] == [0, 0, 0]
    assert await store.count(FilePart, FilePart.owner_id.like("batch%")) == 0
    assert await store.count(File, File.purpose == "batch_output") == 0


async def test_a_delete_while_the_batch_ends_deletes_its_files(store: Store) -> None:
    """The transaction that ends the batch is open while the delete looks for files."""
    batch = await failed_in_part(store)
    step = await batch.claim()
    source = await OutputSource.load(store.database, batch.parts().files, batch.parts().work, batch.job_id)
    assert source is not None
    other = store.another()
    async with store.database.write() as connection:
        part = {"id": "part_x", "project": PROJECT, "owner_id": f"{batch.id}:output", "ordinal": 0, "bytes": 1}
        await connection.execute(insert(FilePart).values(created_at=db_now(), **part))
        await end_batch(connection, source, step, OutputProgress(completed=30, output_parts=1))
        deletion = asyncio.create_task(delete_job(other.jobs, PROJECT, batch.job_id))
        if not store.database.is_sqlite:  # there, one transaction at a time writes
            await until(lambda: _waits_for_lock(store), what="the delete at the row of the job")
    await deletion
    async with store.database.read() as connection:
        output = select(File.deleted_at).where(File.purpose == "batch_output")
        assert (await connection.execute(output)).scalar_one() is not None
    await other.close()


async def _waits_for_lock(store: Store) -> bool:
    waiting = text(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    async with store.database.read() as connection:
        return bool((await connection.execute(waiting)).scalar_one())
