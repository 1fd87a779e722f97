"""Duplicates: a text that occurs again in its job is embedded and billed once, and has its vector under every index."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.jobs.render import job_object
from engine.corpus.lines import ParsedRecords
from engine.jobs.leasing import duplicate_codec
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.duplicate_outcomes import DuplicateFanout
from engine.jobs.recording.record_outcomes import fail_remaining, record
from models.embedding import BatchOutcome, Input, InputError, Options
from models.errors import EmbedmillError
from models.job import JobStatus, ShardState
from providers.fake import fake_tokens, fake_vectors
from tests.integration.snapshot import OPEN, DatabaseSnapshot
from tests.integration.store import UPSTREAM_MODEL, WIDTH, Store, landed, refused
from tests.integration.test_run import scripted
from tests.running import run_shard, sweep


async def submitted(store: Store, inputs: Sequence[Input]) -> str:
    lines = ParsedRecords()
    for item in inputs:
        lines.add(item)
    async with store.receiving() as intake:
        await intake.add(lines)
        await intake.finish(b"fingerprint")
    return intake.job_id


async def checked(store: Store, job_id: str, inputs: Sequence[Input]) -> DatabaseSnapshot:
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check(lambda indexes: fake_vectors([inputs[index] for index in indexes], WIDTH, UPSTREAM_MODEL))
    return snapshot


async def run_through(store: Store, job_id: str, *, order: Sequence[int] | None = None) -> None:
    """Run shards until none is open; a shard that waits for another is due again at once."""
    shard_ids = await store.shard_ids(job_id)
    async with asyncio.timeout(20):
        while any(shard.state in OPEN for shard in await store.shards(job_id)):
            for position in order or range(len(shard_ids)):
                await store.set_shard(shard_ids[position], next_run_at=0.0)
                await run_shard(store.runtime, shard_ids[position], "w")


async def test_each_text_is_billed_once_and_stands_under_every_index(store: Store) -> None:
    chance = random.Random(1)
    inputs: list[Input] = [f"text {chance.randrange(12)}" for _ in range(45)]
    job_id = await submitted(store, inputs)
    await run_through(store, job_id, order=[4, 3, 2, 1, 0])  # the last shard first: its firsts are not there yet
    snapshot = await checked(store, job_id, inputs)
    distinct = {str(item) for item in inputs}
    assert snapshot.tokens_in_ledger == sum(map(fake_tokens, distinct))
    assert sum(record.inputs for record in snapshot.ledger) == len(distinct)
    body = job_object(await get_job(store.jobs, "p", job_id))
    assert body["status"] == JobStatus.COMPLETED
    assert body["counts"] == {"total": 45, "completed": 45, "failed": 0, "pending": 0}
    assert body["deduplicated_inputs"] == 45 - len(distinct)
    assert [shard.attempt for shard in snapshot.shards] == [1] * 5  # waiting for a twin costs no attempt


async def test_what_a_shard_holds_of_a_twin(store: Store) -> None:
    job_id = await submitted(store, ["a", "b", "a", "b", "a"])
    [held] = await store.claim_all(job_id)
    assert (held.inputs, held.duplicates) == (["a", "b", None, None, None], {2: 0, 3: 1, 4: 0})
    assert (held.open_positions(), (await store.shards(job_id))[0].tokens) == ([0, 1], 2)


async def test_copies_lie_beside_their_neighbours(store: Store) -> None:
    inputs: list[Input] = [f"text {index}" for index in range(10)]
    inputs += [f"text {index if index % 2 else index - 10}" for index in range(10, 20)]
    job_id = await submitted(store, inputs)
    await run_through(store, job_id)
    snapshot = await checked(store, job_id, inputs)
    assert [(run.first_index, run.count) for run in snapshot.runs] == [(0, 10), (10, 10)]


async def test_a_twin_of_what_failed_fails_alike(database_url: str, tmp_path: Path) -> None:
    store = scripted(database_url, tmp_path, '{when = {contains = "poison"}, do = {status = 400}}')
    inputs: list[Input] = ["poison", "a", "poison", *[f"text {index}" for index in range(10)], "poison", "a"]
    job_id = await submitted(store, inputs)
    await run_through(store, job_id)
    snapshot = await checked(store, job_id, inputs)
    assert sorted(snapshot.with_error) == [0, 2, 13]
    assert {failure.code for failure in snapshot.failures} == {"upstream_rejected"}
    assert (await store.job(job_id)).deduplicated == 1
    await store.close()


async def test_a_twin_of_what_was_refused_at_the_door_is_refused_there(store: Store) -> None:
    job_id = await submitted(store, ["", "a", ""])
    [held] = await store.claim_all(job_id)
    assert (held.duplicates, held.open_positions()) == ({}, [1])
    assert (await DatabaseSnapshot.read(store.runtime.database, job_id)).with_error == [0, 2]


@pytest.mark.parametrize("by", ["worker", "sweep"])
async def test_a_shard_that_is_given_up_leaves_no_twin_behind(store: Store, by: str) -> None:
    """Duplicates of an input with an outcome get it; those of inputs that failed or are open fail with the rest."""
    first = [f"text {index}" for index in range(10)]
    inputs: list[Input] = [*first, "text 0", "own", "own", "text 9", *[f"more {index}" for index in range(6)]]
    job_id = await submitted(store, inputs)
    held, second = await store.claim_all(job_id)
    await record(store.jobs, held, landed(held, [0, 1], route=store.routes[0]))
    if by == "worker":
        await fail_remaining(store.jobs, second, EmbedmillError("given up"))
    else:
        await store.set_shard(second.shard_id, state=ShardState.QUEUED, attempt=99)
        await sweep(store.runtime)
    snapshot = await checked(store, job_id, inputs)
    assert 10 in snapshot.with_vector and sorted(snapshot.with_error) == list(range(11, 20))
    await record(store.jobs, held, landed(held, route=store.routes[0]))
    assert await store.status(job_id) == JobStatus.COMPLETED_WITH_ERRORS


async def test_what_a_killed_worker_had_embedded_is_copied_by_the_next(store: Store) -> None:
    """The first landed, its twin in the same shard did not: the next claim finds it in the database."""
    inputs: list[Input] = ["a", "b", "a", "c"]
    job_id = await submitted(store, inputs)
    [held] = await store.claim_all(job_id)
    await record(store.jobs, held, [*landed(held, [0], route=store.routes[0]), *refused(held, [1])])
    await store.expire_lease(held.shard_id)
    await run_shard(store.runtime, held.shard_id, "next")
    snapshot = await checked(store, job_id, inputs)
    assert (snapshot.with_error, (await store.job(job_id)).deduplicated) == ([1], 1)
    assert snapshot.tokens_in_ledger == fake_tokens("a") + fake_tokens("c")


@pytest.mark.parametrize("seed", range(4))
async def test_random_corpora_under_faults(database_url: str, tmp_path: Path, seed: int) -> None:
    """Any corpus, shards in any order, some runs cut short: each index right, each distinct text billed once."""
    chance = random.Random(seed)
    store = scripted(database_url, tmp_path, '{when = {contains = "poison"}, do = {status = 400}}')
    kinds = [f"text {number}" for number in range(chance.randrange(3, 40))] + ["poison one", "poison two"]
    inputs: list[Input] = [chance.choice(kinds) for _ in range(chance.randrange(30, 60))]
    job_id = await submitted(store, inputs)
    shard_ids = await store.shard_ids(job_id)
    for shard_id in chance.sample(shard_ids, len(shard_ids) // 2):  # workers that record a part and die
        held = await store.claim(shard_id)
        good = [position for position in held.open_positions() if "poison" not in str(held.inputs[position])]
        await record(store.jobs, held, landed(held, good[: chance.randrange(4)], route=store.routes[0]))
        await store.expire_lease(shard_id)
    await sweep(store.runtime)
    order = list(range(len(shard_ids)))
    chance.shuffle(order)
    await run_through(store, job_id, order=order)
    snapshot = await checked(store, job_id, inputs)
    assert sorted(snapshot.with_error) == [index for index, item in enumerate(inputs) if "poison" in str(item)]
    assert snapshot.tokens_in_ledger == sum(
        fake_tokens(item) for item in {str(item) for item in inputs} if "poison" not in item
    )
    await store.close()


def test_nothing_is_kept_for_a_shard_without_twins() -> None:
    assert duplicate_codec.encode({}) is None
    assert duplicate_codec.decode(None) == {}
    both: dict[int, Any] = {3: 0, 5: 4_000_000_000}
    assert duplicate_codec.decode(duplicate_codec.encode(both)) == both


def test_every_duplicate_of_an_input_gets_its_outcome() -> None:
    """Inputs 0 and 1 are repeated, 0 three times; 1 fails, and so do its duplicates."""
    outcomes: dict[int, bytes | InputError | None] = {}

    def on_outcome(part: BatchOutcome) -> None:
        for row, index in enumerate(part.indexes):
            assert index not in outcomes
            outcomes[index] = part.error if part.vectors is None else part.vectors[row].tobytes()

    inputs: list[Input | None] = ["a", "b", None, None, None, None]
    shard = ClaimedShard(
        shard_id="shard",
        job_id="job",
        project="p",
        key_id="key",
        alias="m",
        width=WIDTH,
        options=Options(),
        first_index=0,
        count=6,
        attempt=1,
        fence=1,
        outcome_bits=np.zeros(6, dtype=bool),
        inputs=inputs,
        tokens=2,
        duplicates={2: 0, 3: 1, 4: 0, 5: 0},
    )
    fanout = DuplicateFanout(shard, on_outcome)
    vector, error = np.full((1, WIDTH), 3.0, dtype=np.float32), InputError("upstream_rejected", "refused")
    fanout(BatchOutcome([0], vector, None, 1, False, Decimal(0), None))
    fanout(BatchOutcome([1], None, error, 0, False, Decimal(0), None))
    fanout.flush()
    assert outcomes == {0: vector.tobytes(), 1: error} | dict.fromkeys((2, 4, 5), vector.tobytes()) | {3: error}
    assert fanout.unresolved() == {}
