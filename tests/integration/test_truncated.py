"""What is noted of inputs that were cut, on both databases."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import insert

from api.jobs.render import job_object
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording import truncated_inputs
from engine.jobs.recording.record_outcomes import record
from models.job import TruncatedInputs
from tests.integration.store import Store, landed


@pytest.mark.parametrize("seed", [1, 2])
async def test_ranges_say_what_was_noted(store: Store, seed: int) -> None:
    job_id = await store.submit(10)
    rng = random.Random(seed)
    noted: set[int] = set()
    for low in range(0, 400, 100):
        some = set(rng.sample(range(low, low + 100), rng.randint(1, 60)))
        noted |= some
        async with store.runtime.database.write() as connection:
            await connection.execute(insert(TruncatedInputs).values(truncated_inputs.row_of(job_id, some)))
    async with store.runtime.database.read() as connection:
        for _ in range(20):
            start = rng.randrange(400)
            stop = rng.randrange(start, 401)
            expected = {index for index in noted if start <= index < stop}
            assert await truncated_inputs.between(connection, job_id, start, stop) == expected
        asked = set(rng.sample(range(400), 50))
        assert await truncated_inputs.truncated_among(connection, job_id, asked) == asked & noted
        assert await truncated_inputs.truncated_among(connection, job_id, ()) == set()
        assert await truncated_inputs.between(connection, "job_other", 0, 400) == set()


async def test_a_record_that_comes_twice_counts_once(store: Store) -> None:
    job_id = await store.submit(10)
    [held] = await store.claim_all(job_id)
    [part] = landed(held, range(10), route=store.routes[0], cut=10)
    part = part._replace(truncated=[2, 9])
    for _ in range(2):
        await record(store.jobs, held, [part])
    assert job_object(await get_job(store.jobs, "p", job_id))["truncated"] == 2
    async with store.runtime.database.read() as connection:
        assert await truncated_inputs.between(connection, job_id, 0, 10) == {2, 9}
