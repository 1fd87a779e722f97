"""Variants in the core of jobs: what is read of a shard is its variant's, and one variant does not hold up another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.reading import job_rows
from engine.jobs.reading.variants import stored_prefix, vector_width
from engine.jobs.recording.calls_without_results import insert_run_calls
from engine.jobs.recording.record_outcomes import record
from engine.jobs.recording.split_shard import split_shard
from engine.jobs.recording.spool_replay import decode_spool, encode_spool
from models.base import db_now
from models.batch import JobVariant
from models.embedding import Call
from models.errors import Conflict
from models.usage import UsageRecord
from tests.integration.batches import request
from tests.integration.mixed_batches import (
    MODELS,
    WIDTHS,
    assert_exact,
    mixed_lines,
    open_store,
    run_all_shards,
    steps_of,
)
from tests.integration.new_batches import NewBatch, new_batch
from tests.integration.store import Store, landed
from tests.running import sweep

OUTAGE = {
    "provider": "fake",
    "code": "c",
    "message": "m",
    "advice": "a",
    "since": 0,
    "waits_since": 0,
}


@pytest.fixture
async def three(database_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    store = open_store(database_url, tmp_path)
    yield store
    await store.close()


async def ingested(store: Store, lines: list[bytes]) -> NewBatch:
    batch = await new_batch(store, lines)
    await batch.validate()
    assert await steps_of(store).run_next()
    return batch


async def shard_of(store: Store, batch: NewBatch, variant: int) -> ClaimedShard:
    shards = await store.shards(batch.job_id)
    return await store.claim(next(shard.id for shard in shards if shard.variant == variant))


async def test_a_claim_has_the_model_and_the_options_of_its_variant(three: Store) -> None:
    lines = [
        request("a", "1", MODELS[0], truncate="end", user="u"),
        request("b", "2", MODELS[1], input_type="query", providerOptions={"fake": {"x": 1}}, user="u"),
    ]
    batch = await ingested(three, lines)
    first, second = await shard_of(three, batch, 0), await shard_of(three, batch, 1)
    assert (first.alias, first.width, first.first_index, first.options.truncate) == (MODELS[0], 8, 0, "end")
    assert (second.alias, second.width, second.first_index) == (MODELS[1], 16, 1)
    assert (second.options.input_type, second.options.provider_options) == ("query", {"fake": {"x": 1}})
    assert first.options.user == second.options.user == "u"


@pytest.mark.parametrize(("models", "defers"), [(MODELS[:1], True), (MODELS[:2], False)])
async def test_the_outage_of_one_model_does_not_defer_the_others(
    three: Store, models: tuple[str, ...], defers: bool
) -> None:
    batch = await ingested(three, [request(f"id-{n}", f"{n}", models[n % len(models)]) for n in range(500)])
    shard = await shard_of(three, batch, 0)
    await claims.release(
        three.jobs,
        shard,
        delay_s=10.0,
        counts_as_attempt=False,
        reason="away",
        waiting_on="provider",
        outage=OUTAGE,
    )
    assert ((await batch.job()).not_before is not None) == defers
    following = await claims.claim_next(three.jobs, "w")
    assert (following is None) == defers


async def test_a_half_of_a_split_shard_keeps_the_variant(three: Store) -> None:
    batch = await ingested(three, mixed_lines(600))
    shards = await three.shards(batch.job_id)
    second = next(shard for shard in shards if shard.variant == 1)
    assert await split_shard(three.jobs, second.id) == 2
    halves = [shard for shard in await three.shards(batch.job_id) if shard.variant == 1]
    assert [half.first_index for half in halves] == [200, 300]
    assert {(await three.claim(half.id)).width for half in halves} == {16}


async def test_lost_calls_are_charged_to_the_model_of_the_variant(three: Store) -> None:
    lines = [request(f"id-{n}", f"{n}", MODELS[n % 2], user="u") for n in range(4)]
    batch = await ingested(three, lines)
    shard = await shard_of(three, batch, 1)
    call = Call("fake", "m", False, 200, 1.0, 2.0, inputs=2, id="call_1", wasted=True, tokens=2)
    async with three.database.write() as connection:
        assert await insert_run_calls(three.database, connection, shard, [call])
    async with three.database.read() as connection:
        row = (await connection.execute(select(*UsageRecord.__table__.columns))).one()
    assert (row.alias, row.end_user, row.job_id) == (MODELS[1], "u", batch.job_id)


async def test_spooled_results_find_their_width(three: Store) -> None:
    count = 45  # without a duplicate
    batch = await ingested(three, mixed_lines(count))
    for variant in range(3):
        shard = await shard_of(three, batch, variant)
        parts = landed(shard, route=three.runtime.alias(shard.alias).routes[0])
        read, outcomes, record_id, calls = decode_spool(encode_spool(shard, parts, f"r{variant}"))
        await record(three.jobs, read, outcomes, record_id, calls)
    await run_all_shards(three)
    await assert_exact(three, batch.job_id, count)


async def test_what_is_stored_of_variants_that_grow_side_by_side(three: Store) -> None:
    """A reader of indexes sees no gap: it reads as far as all of them are stored."""
    batch = await ingested(three, mixed_lines(600))

    async def job(**columns: Any) -> Any:
        if columns:
            await three.set_job(batch.job_id, **columns)
        return await job_rows.get_job(three.jobs, "p", batch.job_id)

    assert await stored_prefix(three.database, await job()) == 600
    for counts, stored in (((200, 200, 0), 400), ((200, 150, 200), 350), ((0, 200, 200), 0), ((200, 200, 200), 600)):
        async with three.database.write() as connection:
            for number, count in enumerate(counts):
                variant = update(JobVariant).where(JobVariant.number == number)
                await connection.execute(variant.values(ingested=count))
        assert await stored_prefix(three.database, await job(total=None, ingested=sum(counts))) == stored


async def test_the_width_of_a_matrix(three: Store) -> None:
    batch = await ingested(three, mixed_lines(6))
    row = await job_rows.get_job(three.jobs, "p", batch.job_id)
    with pytest.raises(Conflict, match=f"/v1/batches/{batch.id}/results"):
        await vector_width(three.database, row)
    same = await ingested(
        three, [request(str(n), f"{n}", MODELS[0], truncate=("none", "end")[n % 2]) for n in range(4)]
    )
    row = await job_rows.get_job(three.jobs, "p", same.job_id)
    assert (row.alias, row.dimensions, await vector_width(three.database, row)) == ("", 0, WIDTHS[MODELS[0]])


async def test_the_deadline_ends_a_batch_whose_file_is_not_read_yet(three: Store) -> None:
    batch = await new_batch(three, mixed_lines(30))
    await batch.validate()
    await three.set_job(batch.job_id, expires_at=db_now() - 1)
    await sweep(three.runtime)
    assert (await batch.job()).status == "expired"
    assert await steps_of(three).run_next()
    assert (await batch.row()).status == "expired"
