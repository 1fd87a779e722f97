"""Results while a job runs and after: gaps are NaN in npy and missing lines in ndjson, ranges cut across shards."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pybase64
import pytest
from sqlalchemy import event

from engine.jobs.reading import results
from engine.jobs.reading.job_rows import get_job
from engine.jobs.reading.results import IndexRange
from engine.jobs.recording.record_outcomes import record
from models.embedding import Matrix
from providers.fake import fake_vectors
from tests.integration.store import UPSTREAM_MODEL, WIDTH, Store, landed, refused, text_of

TOTAL = 35
# Of 35 inputs in shards of 10: a gap at each end of a shard, one across two, and a shard that has not begun.
LANDED = [*range(1, 9), *range(13, 17), *range(20, 30)]
FAILED = [0, 18]
RANGES = (
    *((0, 1), (1, 9), (5, 15), (8, 13), (9, 31), (14, 15), (16, 40), (30, 34), (7, 7)),
    *((29, None), (None, 12), (99, None)),
)


def vectors(indexes: list[int]) -> Matrix:
    return fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL)


@pytest.fixture
async def half_done(store: Store) -> str:
    """A running job with gaps; its input 34 was refused at the door."""
    job_id = await store.submit(TOTAL, bad={34}, with_ids=True)
    for shard_id in (await store.shard_ids(job_id))[:3]:
        held = await store.claim(shard_id)
        mine = range(held.first_index, held.first_index + held.count)
        positions = [index - held.first_index for index in LANDED if index in mine]
        # Recorded in two parts, so that runs end where no gap is.
        await record(store.jobs, held, landed(held, positions[:3], route=store.routes[0], cut=2))
        await record(store.jobs, held, landed(held, positions[3:], route=store.routes[0]))
        await record(store.jobs, held, refused(held, [index - held.first_index for index in FAILED if index in mine]))
    return job_id


async def read_npy(store: Store, job_id: str, start: int | None = None, stop: int | None = None) -> Matrix:
    job = await get_job(store.jobs, "p", job_id)
    wanted = IndexRange.of(job, start, stop)
    body = b"".join([piece async for piece in results.npy(store.runtime.database, job, wanted)])
    assert len(body) == results.npy_bytes(job, wanted)
    loaded: Matrix = np.load(io.BytesIO(body))
    assert loaded.dtype == np.float32
    return loaded


async def read_ndjson(
    store: Store, job_id: str, start: int | None = None, stop: int | None = None, encoding: str = "float"
) -> list[dict[str, object]]:
    job = await get_job(store.jobs, "p", job_id)
    wanted = IndexRange.of(job, start, stop)
    body = b"".join([piece async for piece in results.ndjson(store.database, store.work, job, wanted, encoding)])
    return [orjson.loads(line) for line in body.splitlines()]


@contextmanager
def tables_read(store: Store) -> Iterator[list[str]]:
    """The table of each statement that reads within the block."""
    tables: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        tables.extend(re.findall(r"FROM (\w+)", statement)[:1])

    engine = store.runtime.database._reads.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield tables
    event.remove(engine, "before_cursor_execute", note)


async def test_npy_has_a_row_for_each_index_and_nan_where_there_is_no_vector(store: Store, half_done: str) -> None:
    rows = await read_npy(store, half_done)
    assert rows.shape == (TOTAL, WIDTH)
    missing = sorted(set(range(TOTAL)) - set(LANDED))
    assert np.isnan(rows[missing]).all()
    assert np.array_equal(rows[LANDED], vectors(LANDED))


async def test_a_range_is_the_same_as_a_cut_of_the_whole(store: Store, half_done: str) -> None:
    whole, lines = await read_npy(store, half_done), await read_ndjson(store, half_done)
    for start, stop in RANGES:
        rows = await read_npy(store, half_done, start, stop)
        assert np.array_equal(rows, whole[start:stop], equal_nan=True), (start, stop)
        chosen = range(TOTAL)[start:stop]
        wanted = [line for line in lines if line["index"] in chosen]
        assert await read_ndjson(store, half_done, start, stop) == wanted, (start, stop)


async def test_ndjson_has_a_line_for_each_outcome_in_order(store: Store, half_done: str) -> None:
    lines = await read_ndjson(store, half_done)
    assert [line["index"] for line in lines] == sorted([*LANDED, *FAILED, 34])
    for line in lines:
        assert line["id"] == f"id-{line['index']}"
    embedded = [line for line in lines if "embedding" in line]
    assert [line["index"] for line in embedded] == LANDED
    assert np.array_equal(np.array([line["embedding"] for line in embedded], dtype=np.float32), vectors(LANDED))
    codes = {line["index"]: line["error"]["code"] for line in lines if "error" in line}  # type: ignore[index]
    assert codes == {0: "upstream_rejected", 18: "upstream_rejected", 34: "empty_input"}


async def test_base64_lines_hold_the_same_bytes(store: Store, half_done: str) -> None:
    lines = [line for line in await read_ndjson(store, half_done, encoding="base64") if "embedding" in line]
    assert b"".join(pybase64.b64decode(str(line["embedding"])) for line in lines) == vectors(LANDED).tobytes()


async def test_complete_is_said_of_the_range_that_was_asked_for(store: Store, half_done: str) -> None:
    job = await get_job(store.jobs, "p", half_done)

    async def complete(start: int | None, stop: int | None) -> bool:
        return await results.is_complete(store.runtime.database, job, IndexRange.of(job, start, stop), stop)

    assert [await complete(*each) for each in ((0, 9), (13, 17), (20, 30), (18, 19), (34, 35))] == [True] * 5
    assert [await complete(*each) for each in ((0, 10), (12, 14), (20, 31), (None, None))] == [False] * 4


async def test_errors_are_listed_in_order_with_their_ids(store: Store, half_done: str) -> None:
    job = await get_job(store.jobs, "p", half_done)
    body = b"".join([piece async for piece in results.errors_ndjson(store.database, store.work, job)])
    listed = [orjson.loads(line) for line in body.splitlines()]
    assert [(line["index"], line["id"]) for line in listed] == [(0, "id-0"), (18, "id-18"), (34, "id-34")]
    assert set(listed[0]["error"]) == {"code", "message", "retryable"}


async def test_a_job_of_many_shards_reads_whole(store: Store) -> None:
    """More shards than one page of them."""
    job_id = await store.submit(700)
    for held in await store.claim_all(job_id):
        await record(store.jobs, held, landed(held, route=store.routes[0], cut=10))
    assert np.array_equal(await read_npy(store, job_id), vectors(list(range(700))))
    assert [line["index"] for line in await read_ndjson(store, job_id, 633, 671)] == list(range(633, 671))


async def test_a_page_costs_a_statement_and_errors_are_read_only_where_a_vector_is_missing(store: Store) -> None:
    job_id = await store.submit(30, with_ids=True)
    for held in await store.claim_all(job_id):
        failed = [position for position in range(held.count) if held.index(position) in (12, 17)]
        whole = [position for position in range(held.count) if position not in failed]
        for position in whole:  # a block for each vector
            await record(store.jobs, held, landed(held, [position], route=store.routes[0]))
        await record(store.jobs, held, refused(held, failed))
    job = await get_job(store.jobs, "p", job_id)
    with tables_read(store) as tables:
        [_, *rows] = [piece async for piece in results.npy(store.runtime.database, job, IndexRange.of(job, None, None))]
    assert len(b"".join(rows)) == 30 * 4 * WIDTH
    # The second shard has two errors: a look at its vectors, and one at both kinds of errors.
    assert tables == ["shards", "vectors", "vectors", "input_errors", "refused_inputs", "vectors"]
    with tables_read(store) as tables:
        lines = [
            piece
            async for piece in results.ndjson(store.database, store.work, job, IndexRange.of(job, 20, 30), "float")
        ]
    assert b"".join(lines).count(b"\n") == 10
    assert tables == ["shards", "vectors"]


async def test_no_connection_is_held_between_two_pages(store: Store) -> None:
    job_id = await store.submit(30)
    for held in await store.claim_all(job_id):
        await record(store.jobs, held, landed(held, route=store.routes[0]))
    job = await get_job(store.jobs, "p", job_id)
    async for _ in results.ndjson(store.database, store.work, job, IndexRange.of(job, None, None), "float"):
        assert store.runtime.database._reads.pool.status().endswith("Current Checked out connections: 0")
