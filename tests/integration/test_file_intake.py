"""A file becomes the shards of its job: each input at its variant's index, once, whatever stops the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from engine.batches.ingest import ingest_batch
from engine.batches.steps import StepStopped, claim_step
from engine.observability import failpoints
from engine.observability.failpoints import Failpoint
from models.base import db_now
from models.batch import JobVariant
from models.file import File
from models.job import Shard
from tests.integration.batches import request, step_parts
from tests.integration.mixed_batches import (
    MODELS,
    assert_exact,
    mixed_lines,
    open_store,
    run_all_shards,
    steps_of,
)
from tests.integration.new_batches import new_batch
from tests.integration.store import Store


@pytest.fixture
async def three(database_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    store = open_store(database_url, tmp_path)
    yield store
    await store.close()


async def stored_inputs(store: Store) -> int:
    async with store.database.read() as connection:
        return int((await connection.execute(select(func.coalesce(func.sum(Shard.count), 0)))).scalar_one())


async def test_three_models_line_by_line(three: Store) -> None:
    count = 5000
    batch = await new_batch(three, mixed_lines(count))
    await batch.validate()
    assert await steps_of(three).run_next()
    job = await batch.job()
    assert (job.alias, job.dimensions, job.total, job.ingested) == ("", 0, count, count)
    assert [(v.ingested, v.inputs) for v in await batch.variants()] == [(1667, 1667), (1667, 1667), (1666, 1666)]
    assert {shard.variant for shard in await three.shards(job.id)} == {0, 1, 2}
    step = await batch.step()
    assert (step.kind, step.lease_until) == ("run", None)
    await run_all_shards(three)
    job = await batch.job()
    assert (job.status, job.completed, job.failed, job.deduplicated) == ("completed", count, 0, count // 50)
    await assert_exact(three, job.id, count)
    assert await steps_of(three).run_next()  # the output
    row = await batch.row()
    assert (row.status, row.completed, row.failed) == ("completed", count, 0)


async def test_equal_texts_are_duplicates_within_their_variant_only(three: Store) -> None:
    lines = [request(f"{model}-{n}", "the same text", model) for n in range(3) for model in MODELS]
    batch = await new_batch(three, lines)
    await batch.validate()
    await steps_of(three).run_next()
    await run_all_shards(three)
    job = await batch.job()
    assert (job.status, job.completed, job.deduplicated) == ("completed", 9, 6)


async def test_one_model_gives_a_job_as_any_other(three: Store) -> None:
    batch = await new_batch(three, [request(f"id-{n}", f"text {n}", MODELS[0]) for n in range(450)])
    await batch.validate()
    await steps_of(three).run_next()
    job = await batch.job()
    assert (job.alias, job.dimensions, job.total) == (MODELS[0], 8, 450)
    assert [(shard.first_index, shard.size) for shard in await three.shards(job.id)] == [
        (0, 200),
        (200, 200),
        (400, 50),
    ]


async def test_lines_that_cannot_run_get_no_index(three: Store) -> None:
    lines = [
        request("a", "1", MODELS[0]),
        b"no json",
        request("b", ["2", "", "3"], MODELS[0]),
        request("a", "a custom_id again", MODELS[0]),
        request("c", "4", "no/model"),
        request("d", "5", MODELS[1], dimensions=3),
        request("e", "6 " * 400, MODELS[0]),
        request("f", "7", MODELS[0]),
    ]
    batch = await new_batch(three, lines, metadata={"embedmill_validation": "lenient"})
    await batch.validate()
    await steps_of(three).run_next()
    job = await batch.job()
    assert (job.total, job.failed) == (6, 2)  # an empty text, and one that is too long
    await run_all_shards(three)
    job = await batch.job()
    assert (job.status, job.completed, job.failed) == ("completed_with_errors", 4, 2)
    assert sorted(each["code"] for each in job.error_summary) == ["empty_input", "input_too_long"]


async def test_many_variants_take_little_memory_and_keep_their_order(three: Store) -> None:
    """As many as a file may have, each with few inputs: they are stored at the end, each in its range."""
    lines = [
        request(f"id-{n}", f"text {n}", MODELS[0], user="u", providerOptions={"fake": {"tag": str(n % 300)}})
        for n in range(900)
    ]
    batch = await new_batch(three, lines)
    row = await batch.validate()
    assert row.status == "in_progress", row.errors
    await steps_of(three).run_next()
    job = await batch.job()
    assert (job.total, job.open_shards) == (900, 300)
    shards = await three.shards(job.id)
    assert [shard.first_index for shard in shards] == list(range(0, 900, 3))
    assert all(variant.ingested == 3 for variant in await batch.variants())


@pytest.mark.parametrize("place", ["mid_ingest", "after_ingest_commit"])
@pytest.mark.parametrize("after", [0, 1, 2])
async def test_an_ingest_that_breaks_off_goes_on_without_gap_or_duplicate(three: Store, place: str, after: int) -> None:
    count = 2600
    batch = await new_batch(three, mixed_lines(count))
    await batch.validate()
    step = await batch.claim()
    failpoints.arm(f"{place}=raise,times=1,skip={after}")
    try:
        with pytest.raises(Failpoint):
            await ingest_batch(step_parts(three), step)
    finally:
        failpoints.arm("")
    before = await stored_inputs(three)
    assert before < count and (before or not after)
    await batch.let_lease_pass()
    other = three.another()
    try:
        await run_all_shards(three)  # while the rest of the file is not read, shards run
        assert await steps_of(other, "w2").run_next()
    finally:
        await other.close()
    assert await stored_inputs(three) == count
    await run_all_shards(three)
    assert (await batch.job()).status == "completed"
    await assert_exact(three, batch.job_id, count)


async def test_a_worker_that_lost_its_lease_stores_nothing_more(three: Store) -> None:
    batch = await new_batch(three, mixed_lines(1500))
    await batch.validate()
    suspended = await batch.claim()
    await batch.let_lease_pass()
    taken = await claim_step(three.jobs, "w2")
    assert taken is not None and taken.fence == suspended.fence + 1
    with pytest.raises(StepStopped):
        await ingest_batch(step_parts(three), suspended)
    assert await stored_inputs(three) == 0
    await ingest_batch(step_parts(three), taken)
    assert await stored_inputs(three) == 1500


async def test_two_workers_race_for_a_step(three: Store) -> None:
    batch = await new_batch(three, mixed_lines(900))
    await batch.validate()
    others = [three.another() for _ in range(4)]
    try:
        claimed = await asyncio.gather(*(claim_step(store.jobs, f"w{n}") for n, store in enumerate(others)))
        winners = [step for step in claimed if step is not None]
        assert len(winners) == 1
        await ingest_batch(step_parts(three), winners[0])
    finally:
        for other in others:
            await other.close()
    assert await stored_inputs(three) == 900


async def test_a_step_that_must_stop_keeps_what_it_has_stored(three: Store) -> None:
    count = 3000
    batch = await new_batch(three, mixed_lines(count))
    await batch.validate()
    step = await batch.claim()
    checks = iter(range(100))
    with pytest.raises(StepStopped):
        await ingest_batch(step_parts(three), replace(step, must_stop=lambda: next(checks) >= 2))
    assert 0 < await stored_inputs(three) < count
    await batch.let_lease_pass()
    assert await steps_of(three).run_next()
    await run_all_shards(three)
    await assert_exact(three, batch.job_id, count)


async def test_a_cancelled_batch_stores_nothing_more(three: Store) -> None:
    batch = await new_batch(three, mixed_lines(1500))
    await batch.validate()
    step = await batch.claim()
    await three.set_job(batch.job_id, status="cancelled", finished_at=db_now())
    with pytest.raises(StepStopped):
        await ingest_batch(step_parts(three), step)
    assert await stored_inputs(three) == 0
    await batch.let_lease_pass()
    turned = await claim_step(three.jobs, "w")
    assert turned is not None and (turned.kind, turned.progress, turned.attempts) == ("write_output", None, 1)


async def test_a_file_that_is_deleted_while_it_is_read_is_read_to_its_end(three: Store) -> None:
    batch = await new_batch(three, mixed_lines(1200))
    await batch.validate()
    async with three.database.write() as connection:
        await connection.execute(update(File).values(deleted_at=db_now()))
    assert await steps_of(three).run_next()
    assert await stored_inputs(three) == 1200


async def test_a_file_with_other_inputs_than_were_counted_fails_its_batch(three: Store) -> None:
    """Whatever went wrong, no input gets the index of another variant."""
    batch = await new_batch(three, mixed_lines(300), has_webhook=True)
    await batch.validate()
    async with three.database.write() as connection:
        counted = update(JobVariant).where(JobVariant.number == 0)
        await connection.execute(counted.values(inputs=JobVariant.inputs - 1))
    assert await steps_of(three).run_next()
    row, job = await batch.row(), await batch.job()
    assert (row.status, row.errors[0]["code"], job.status) == ("failed", "file_changed", "failed")
    assert await batch.step() is None and await batch.events() == ["batch.failed"]
    assert row.failed_at is not None and await three.count(Shard, Shard.state == "queued") == 0
