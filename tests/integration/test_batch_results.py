"""Results of a batch as one stream: lines of its files in the order of the input, and what is done while it runs."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from sqlalchemy import update

from engine.batches.output_lines import line_ids
from engine.batches.results import BatchResults, ResultsReader
from engine.files.composition import files_of
from models.base import db_now
from models.batch import Batch, JobVariant
from models.errors import Conflict, InvalidInput
from models.file import File
from models.file_errors import BatchNotFound, BatchOutputDeleted
from models.job import JobStatus
from tests.integration.batches import PROJECT, RunBatch, request, run_batch
from tests.integration.store import Store
from tests.integration.test_batch_output import checked_vectors, files

FAILURES = {"text 7": "upstream_rejected", "text 8": "upstream_rejected", "text 29": "input_too_long"}
IDS = [f"id-{i}" for i in range(30)]


async def opened(batch: RunBatch, after: str | None = None, limit: int | None = None) -> BatchResults:
    store = batch.store
    reader = ResultsReader(store.jobs, files_of(store.runtime), store.work, PROJECT)
    return await reader.open(batch.id, after=after, limit=limit)


async def read(batch: RunBatch, after: str | None = None, limit: int | None = None) -> list[bytes]:
    return [line async for page in (await opened(batch, after, limit)).lines for line in page]


def ids_of(lines: list[bytes]) -> list[Any]:
    return [orjson.loads(line)["custom_id"] for line in lines]


async def ended(store: Store, part_bytes: int = 300) -> RunBatch:
    batch = await run_batch(store, b"\n\n".join(files(30)), failures=FAILURES)
    await batch.write(part_bytes=part_bytes)
    return batch


async def running(store: Store, *, not_run: set[str] | None = None) -> RunBatch:
    batch = await run_batch(
        store, b"\n".join(files(30)), failures=FAILURES, status=JobStatus.IN_PROGRESS, not_run=not_run or set()
    )
    await store.set_job(batch.job_id, finished_at=None, total=None)
    return batch


async def test_the_files_of_an_ended_batch_are_merged(store: Store) -> None:
    batch = await ended(store)
    row, lines = await batch.row(), await read(batch)
    assert (await opened(batch)).is_complete and ids_of(lines) == IDS
    output, errors = await batch.content(row.output_file_id), await batch.content(row.error_file_id)
    in_files = set(output.splitlines(keepends=True)) | set(errors.splitlines(keepends=True))
    assert set(lines) == in_files and len(lines) == 30


@pytest.mark.parametrize("state", ["ended", "running"])
async def test_pages(store: Store, state: str) -> None:
    batch = await (ended(store) if state == "ended" else running(store))
    assert (await opened(batch)).is_complete == (state == "ended")
    whole = await read(batch)
    assert ids_of(whole) == IDS
    assert await read(batch, limit=1) == whole[:1] and await read(batch, limit=10**6) == whole
    assert await read(batch, after="id-7") == whole[8:] and await read(batch, after="id-29") == []
    pages: list[bytes] = []
    while page := await read(batch, after=orjson.loads(pages[-1])["custom_id"] if pages else None, limit=7):
        assert len(page) <= 7
        pages += page
    assert pages == whole
    by_id = orjson.loads(whole[7])["id"]
    assert await read(batch, after=by_id, limit=2) == whole[8:10]
    for unknown in ("id", "id-30", "", "batch_req_" + "0" * 32, '"'):
        with pytest.raises(InvalidInput, match="custom_id"):
            await opened(batch, after=unknown)


@pytest.mark.parametrize("first_open", ["text 5.0", "text 20"])
async def test_a_running_batch_shows_what_is_done_up_to_the_first_gap(store: Store, first_open: str) -> None:
    """A reader who asks for what comes behind the last line it has read misses no line that is done later."""
    batch = await running(store, not_run={first_open, "text 22"})
    lines = [orjson.loads(line) for line in await read(batch)]
    gap = {"text 5.0": 5, "text 20": 20}[first_open]
    assert [line["custom_id"] for line in lines] == IDS[:gap]
    assert await read(batch, after=IDS[gap - 1]) == [] and not (await opened(batch)).is_complete
    assert ids_of(await read(batch, limit=gap + 3)) == IDS[:gap]
    sources = files(30)
    for line in lines:
        if line["error"] is None:
            checked_vectors(line, sources[IDS.index(line["custom_id"])])
            assert line["response"]["body"]["usage"]["total_tokens"] > 0
    failed = {line["custom_id"]: line["error"]["code"] for line in lines if line["error"]}
    assert failed == ({} if gap == 5 else {"id-7": "upstream_rejected", "id-8": "upstream_rejected"})


async def test_a_line_that_has_no_shard_yet_is_a_gap(store: Store) -> None:
    batch = await running(store)
    async with store.database.write() as connection:
        await connection.execute(update(JobVariant).where(JobVariant.number == 1).values(ingested=0))
    assert ids_of(await read(batch)) == IDS[:1]


async def test_before_its_validation_there_is_nothing(store: Store) -> None:
    batch = await run_batch(store, b"\n".join(files(3)), status=JobStatus.VALIDATING, is_validated=False)
    assert await read(batch) == [] and not (await opened(batch)).is_complete


@pytest.mark.parametrize("is_ended", [True, False])
async def test_lines_without_a_custom_id_are_named_by_their_own_id(store: Store, is_ended: bool) -> None:
    sources = [request("a", "a"), b"none", b"none", request("a", "a again"), request("b", "b")]
    batch = await run_batch(store, b"\n".join(sources), duplicate_lines=[4], is_lenient=True)
    if is_ended:
        await batch.write()
    lines = await read(batch)
    assert ids_of(lines) == ["a", None, None, "a", "b"]
    assert [orjson.loads(line)["id"] for line in lines] == [line_ids(batch.id, n)[0].decode() for n in range(1, 6)]
    third = orjson.loads(lines[2])["id"]
    assert await read(batch, after=third) == lines[3:]


async def test_a_deleted_file_is_named(store: Store) -> None:
    batch = await ended(store)
    row = await batch.row()
    async with store.database.write() as connection:
        await connection.execute(update(File).where(File.id == row.error_file_id).values(deleted_at=db_now()))
    with pytest.raises(BatchOutputDeleted, match="was deleted, or has expired") as raised:
        await opened(batch)
    assert raised.value.code == "batch_output_deleted" and row.output_file_id in raised.value.message


async def test_other_projects_see_no_batch(store: Store) -> None:
    batch = await ended(store)
    reader = ResultsReader(store.jobs, files_of(store.runtime), store.work, "other")
    for batch_id in (batch.id, "batch_" + "0" * 32, "nonsense", ""):
        with pytest.raises(BatchNotFound):
            await reader.open(batch_id, after=None, limit=None)


async def test_a_batch_that_failed_has_no_results(store: Store) -> None:
    batch = await run_batch(store, b"\n".join(files(3)), is_validated=False, status=JobStatus.FAILED)
    async with store.database.write() as connection:
        await connection.execute(update(Batch).values(status="failed", failed_at=db_now()))
    for after in (None, "id-0"):
        with pytest.raises(Conflict, match=f"GET /v1/batches/{batch.id} names its errors"):
            await opened(batch, after)
