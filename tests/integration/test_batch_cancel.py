"""Cancels of batches, and their pages, on both databases."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, update

from engine.batches.batch_rows import get_batch, list_batches
from engine.batches.cancel import cancel_batch
from engine.batches.steps import StepStopped
from engine.batches.validate import validate_batch
from models.batch import Batch, JobStep
from models.errors import InvalidInput
from models.file_errors import BatchEnded, BatchNotFound
from tests.integration.batches import request, step_parts
from tests.integration.new_batches import PROJECT, NewBatch, new_batch
from tests.integration.store import Store


async def set_batch(batch: NewBatch, **values: object) -> None:
    async with batch.store.database.write() as connection:
        await connection.execute(update(Batch).where(Batch.id == batch.id).values(**values))


async def test_a_batch_that_is_not_validated_yet_is_cancelled_at_once(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x")], has_webhook=True)
    await cancel_batch(store.jobs, PROJECT, batch.id)
    row, job = await batch.row(), await batch.job()
    assert (row.status, job.status) == ("cancelled", "cancelled")
    assert row.cancelling_at and row.cancelled_at and job.finished_at
    assert await batch.step() is None
    await cancel_batch(store.jobs, PROJECT, batch.id)  # again
    assert await batch.events() == ["batch.cancelled"]
    assert (await batch.row()).cancelled_at == row.cancelled_at


async def test_a_cancel_while_a_worker_validates_wins(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x")])
    step = await batch.claim()
    await cancel_batch(store.jobs, PROJECT, batch.id)
    with pytest.raises(StepStopped):
        await validate_batch(step_parts(store), step)
    assert (await batch.row()).status == "cancelled" and await batch.variants() == []


async def test_a_cancel_and_a_validation_at_once_leave_one_story(store: Store) -> None:
    for _ in range(5):
        batch = await new_batch(store, [request("a", "x")], has_webhook=True)
        step = await batch.claim()
        outcome, _ = await asyncio.gather(
            validate_batch(step_parts(store), step),
            cancel_batch(store.jobs, PROJECT, batch.id),
            return_exceptions=True,
        )
        row, job = await batch.row(), await batch.job()
        if isinstance(outcome, StepStopped):
            assert (row.status, job.status, await batch.step()) == ("cancelled", "cancelled", None)
        else:  # it was running when the cancel came: its output is to be written
            assert outcome is None
            assert (row.status, job.status) == ("cancelling", "cancelled")
            assert await batch.step() is not None and await batch.events() == []
            async with store.database.write() as connection:
                await connection.execute(delete(JobStep))


async def test_a_running_batch_is_cancelling_until_its_output_is_written(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x")])
    await batch.validate()
    await cancel_batch(store.jobs, PROJECT, batch.id)
    row, job = await batch.row(), await batch.job()
    assert (row.status, job.status) == ("cancelling", "cancelled")
    assert row.cancelling_at and row.cancelled_at is None
    assert await batch.step() is not None
    await cancel_batch(store.jobs, PROJECT, batch.id)
    assert (await batch.row()).cancelling_at == row.cancelling_at


async def test_a_batch_whose_job_has_ended_is_cancelling_too(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x")])
    await batch.validate()
    await store.set_job(batch.job_id, status="completed", total=1, completed=1)
    await cancel_batch(store.jobs, PROJECT, batch.id)
    assert ((await batch.row()).status, (await batch.job()).status) == ("cancelling", "completed")


@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
async def test_an_ended_batch_cannot_be_cancelled(store: Store, status: str) -> None:
    batch = await new_batch(store, [request("a", "x")])
    await set_batch(batch, status=status)
    await store.set_job(batch.job_id, status="failed")
    with pytest.raises(BatchEnded) as refused:
        await cancel_batch(store.jobs, PROJECT, batch.id)
    assert refused.value.message == f"Cannot cancel a batch with status '{status}'."
    assert (await batch.row()).status == status


async def test_a_batch_of_another_project_is_not_there(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x")])
    for project, batch_id in (("other", batch.id), (PROJECT, "batch_" + "0" * 32), (PROJECT, "nonsense\0")):
        with pytest.raises(BatchNotFound):
            await get_batch(store.jobs, project, batch_id)
        with pytest.raises(BatchNotFound):
            await cancel_batch(store.jobs, project, batch_id)
    assert (await batch.row()).status == "validating"
    assert (await list_batches(store.jobs, "other", limit=10, after_id=None))[0] == []


async def test_pages_of_batches_are_newest_first(store: Store) -> None:
    ids = [(await new_batch(store, None)).id for _ in range(5)]
    ids.sort(reverse=True)
    rows, has_more = await list_batches(store.jobs, PROJECT, limit=2, after_id=None)
    assert ([row.id for row in rows], has_more) == (ids[:2], True)
    rows, has_more = await list_batches(store.jobs, PROJECT, limit=3, after_id=ids[1])
    assert ([row.id for row in rows], has_more) == (ids[2:], False)
    with pytest.raises(InvalidInput):
        await list_batches(store.jobs, PROJECT, limit=3, after_id="nonsense")


async def test_the_batch_of_a_deleted_job_is_gone(store: Store) -> None:
    batch = await new_batch(store, None)
    await store.set_job(batch.job_id, deleted_at=1.0)
    with pytest.raises(BatchNotFound):
        await get_batch(store.jobs, PROJECT, batch.id)
    assert await list_batches(store.jobs, PROJECT, limit=3, after_id=None) == ([], False)


async def test_a_cancel_and_a_claim_at_once_do_not_deadlock(store: Store) -> None:
    for _ in range(5):
        batch = await new_batch(store, [request("a", "x")])
        await asyncio.gather(cancel_batch(store.jobs, PROJECT, batch.id), _claim(batch), _claim(batch))
        assert (await batch.row()).status == "cancelled"
        async with store.database.write() as connection:
            gone = await connection.execute(update(JobStep).values(attempts=0))
        assert gone.rowcount == 0


async def _claim(batch: NewBatch) -> None:
    try:
        await batch.claim()
    except AssertionError:
        return  # it is gone, or another has it
