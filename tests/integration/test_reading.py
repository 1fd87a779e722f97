"""Downloads of jobs that are deleted, expire or run again meanwhile: the whole, or an error; never a part as whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from engine.corpus.lines import ParsedRecords
from engine.jobs.control import termination
from engine.jobs.control.retry import retry
from engine.jobs.ingest import job_intake
from engine.jobs.maintenance.purge import purge
from engine.jobs.reading import read_leases, results, tables
from engine.jobs.reading.job_rows import get_job
from engine.jobs.reading.results import IndexRange
from engine.jobs.recording.record_outcomes import record
from models.base import db_now
from models.errors import JobNotFound, ResultsChanged
from models.job import AmbiguousCall, IdempotencyKey, Job, JobInputError, Shard, VectorBlock
from tests.integration.store import WIDTH, Store, landed, refused
from tests.running import sweep

TOTAL = 60
FAILED = {7, 33}
FORMATS = ("npy", "ndjson", "base64", "parquet", "arrow", "errors")


@pytest.fixture
async def ended(store: Store) -> str:
    """Six shards; two inputs were refused by the provider."""
    job_id = await store.submit(TOTAL, with_ids=True)
    for held in await store.claim_all(job_id):
        bad = [position for position in range(held.count) if held.index(position) in FAILED]
        good = [position for position in range(held.count) if position not in bad]
        await record(store.jobs, held, landed(held, good, route=store.routes[0]))
        if bad:
            await record(store.jobs, held, refused(held, bad))
    return job_id


def download(store: Store, job: Any, kind: str) -> AsyncIterator[bytes | memoryview]:
    whole = IndexRange.of(job, None, None)
    if kind == "npy":
        return results.npy(store.runtime.database, job, whole, complete=True)
    if kind == "errors":
        return results.errors_ndjson(store.database, store.work, job)
    if kind in ("parquet", "arrow"):
        writer = tables.open_table(kind, WIDTH)
        writer.group_bytes = 7 * 4 * WIDTH  # so that there are several pieces, as of large jobs
        return tables.table(store.database, store.work, job, whole, writer, width=WIDTH, complete=True)
    encoding = "base64" if kind == "base64" else "float"
    return results.ndjson(store.database, store.work, job, whole, encoding, complete=True)


async def whole(store: Store, job: Any, kind: str) -> bytes:
    return b"".join([bytes(piece) async for piece in download(store, job, kind)])


async def interrupted(store: Store, job: Any, kind: str, meanwhile: Callable[[], Any], *, after: int = 2) -> bytes:
    """A download, as the API makes it, in which something happens after some of its pieces."""
    got = b""
    pieces = read_leases.renew_while_reading(store.runtime.database, job.id, download(store, job, kind))
    count = 0
    async for piece in pieces:
        got, count = got + bytes(piece), count + 1
        if count == after:
            await meanwhile()
    if count < after:
        await meanwhile()
    return got


async def sweep_it_away(store: Store) -> None:
    for _ in range(6):
        await sweep(store.runtime)


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_download_goes_on_while_its_job_is_deleted(store: Store, ended: str, kind: str) -> None:
    job = await get_job(store.jobs, "p", ended)
    right = await whole(store, job, kind)
    await read_leases.acquire_read_lease(store.runtime.database, job)

    async def delete_job() -> None:
        await termination.delete_job(store.jobs, "p", ended)
        await sweep_it_away(store)
        with pytest.raises(JobNotFound):
            await get_job(store.jobs, "p", ended)

    assert await interrupted(store, job, kind, delete_job) == right
    # Nobody reads any more: it goes.
    await store.set_job(ended, read_until=db_now() - 1)
    await sweep_it_away(store)
    assert [await store.count(table) for table in (Job, Shard, VectorBlock, JobInputError)] == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_download_goes_on_when_its_job_s_retention_ends(store: Store, ended: str, kind: str) -> None:
    job = await get_job(store.jobs, "p", ended)
    right = await whole(store, job, kind)
    await read_leases.acquire_read_lease(store.runtime.database, job)

    async def expire() -> None:
        await store.set_job(ended, expires_at=db_now() - 1)
        await sweep_it_away(store)

    assert await interrupted(store, job, kind, expire) == right
    # While it is read it does not even expire: the next range is served too.
    assert (await get_job(store.jobs, "p", ended)).id == ended


@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.parametrize("kind", FORMATS)
async def test_a_reader_that_was_away_for_too_long_gets_an_error_not_a_part(
    store: Store, ended: str, kind: str, after: int
) -> None:
    """Its lease ran out (a frozen process, a client that stood still), and the rows are gone."""
    job = await get_job(store.jobs, "p", ended)
    right = await whole(store, job, kind)
    await read_leases.acquire_read_lease(store.runtime.database, job)

    async def delete_job() -> None:
        await termination.delete_job(store.jobs, "p", ended)
        await store.set_job(ended, read_until=db_now() - 1)
        await sweep_it_away(store)
        assert await store.count(Job) == 0

    try:
        assert await interrupted(store, job, kind, delete_job, after=after) == right
        assert kind == "errors"  # two lines are one piece: they were sent before
    except ResultsChanged:
        pass


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_purge_that_has_only_begun_is_noticed(store: Store, ended: str, kind: str) -> None:
    """Some rows are gone, and the shards, which say what there was, are still there."""
    job = await get_job(store.jobs, "p", ended)
    async with store.runtime.database.write() as connection:
        table = JobInputError if kind == "errors" else VectorBlock
        column = JobInputError.index if kind == "errors" else VectorBlock.first_index
        last = (await connection.execute(select(column).order_by(column.desc()).limit(1))).scalar_one()
        await connection.execute(delete(table).where(column == last))
    with pytest.raises(ResultsChanged):
        await whole(store, job, kind)


@pytest.mark.parametrize("kind", FORMATS)
async def test_what_failed_runs_again_during_a_download(store: Store, ended: str, kind: str) -> None:
    """The reader was told that the range is complete: it gets all of it, or an error."""
    job = await get_job(store.jobs, "p", ended)
    right = await whole(store, job, kind)

    async def again() -> None:
        await retry(store.jobs, "p", ended, dispatcher=store.dispatcher)

    try:
        got = await interrupted(store, job, kind, again, after=1)
        assert got == right
    except ResultsChanged:
        pass


@pytest.mark.parametrize("kind", ["npy", "ndjson"])
async def test_a_job_that_runs_is_read_without_complaint(store: Store, kind: str) -> None:
    """What is not done yet is no loss; what is done while it is read may come or not."""
    job_id = await store.submit(TOTAL)
    first, second, *_ = await store.claim_all(job_id)
    await record(store.jobs, first, landed(first, range(3, 9), route=store.routes[0]))
    job = await get_job(store.jobs, "p", job_id)
    span = IndexRange.of(job, None, None)

    async def more() -> None:
        await record(store.jobs, second, landed(second, route=store.routes[0]))

    body = (
        results.npy(store.runtime.database, job, span)
        if kind == "npy"
        else results.ndjson(store.database, store.work, job, span, "float")
    )
    got, count = b"", 0
    async for piece in body:
        got, count = got + bytes(piece), count + 1
        if count == 1:
            await more()
    if kind == "npy":
        assert len(got) == results.npy_bytes(job, span)
    else:
        assert got.count(b"\n") in (6, 16)


async def test_reading_many_ranges_writes_seldom(store: Store, ended: str) -> None:
    await read_leases.acquire_read_lease(store.runtime.database, await get_job(store.jobs, "p", ended))
    until = (await store.job(ended)).read_until
    for _ in range(5):
        await read_leases.acquire_read_lease(store.runtime.database, await get_job(store.jobs, "p", ended))
    assert (await store.job(ended)).read_until == until


async def test_who_comes_after_the_delete_is_told_so(store: Store, ended: str) -> None:
    job = await get_job(store.jobs, "p", ended)
    await termination.delete_job(store.jobs, "p", ended)
    with pytest.raises(JobNotFound):
        await read_leases.acquire_read_lease(store.runtime.database, job)


@pytest.mark.parametrize("way", ["deleted", "expired"])
async def test_a_key_goes_with_its_job(store: Store, way: str) -> None:
    reservation = await job_intake.reserve(store.jobs, "p", "key")
    assert isinstance(reservation, job_intake.Reservation)
    job_id = reservation.job_id
    async with store.receiving_as(reservation) as intake:
        lines = ParsedRecords()
        lines.add("text")
        await intake.add(lines)
        await intake.finish(b"fingerprint")
    [held] = await store.claim_all(job_id)
    await record(store.jobs, held, landed(held, route=store.routes[0]))
    assert isinstance(await job_intake.reserve(store.jobs, "p", "key"), job_intake.IdempotentReplay)
    if way == "deleted":
        await termination.delete_job(store.jobs, "p", job_id)
    else:
        await store.set_job(job_id, expires_at=db_now() - 1)
        await sweep(store.runtime)
    fresh = await job_intake.reserve(store.jobs, "p", "key")
    assert isinstance(fresh, job_intake.Reservation) and fresh.job_id != job_id


async def test_old_ambiguous_calls_are_forgotten(store: Store) -> None:
    days = store.runtime.settings.ambiguous_retention_days
    row = {"project": "p", "job_id": "j", "shard_id": "s", "provider": "one", "upstream_model": "m", "inputs": 1}
    async with store.runtime.database.write() as connection:
        for name, at in (("old", db_now() - days * 86400 - 60), ("kept", db_now() - days * 86400 + 60)):
            await connection.execute(insert(AmbiguousCall).values(id=name, at=at, reason="x", **row))
    await sweep(store.runtime)
    assert [await store.count(AmbiguousCall, AmbiguousCall.id == name) for name in ("old", "kept")] == [0, 1]


async def test_a_job_that_is_read_is_purged_after_the_lease(store: Store, ended: str) -> None:
    job = await get_job(store.jobs, "p", ended)
    await read_leases.acquire_read_lease(store.runtime.database, job)
    await termination.delete_job(store.jobs, "p", ended)
    await purge(store.jobs)
    assert await store.count(VectorBlock) > 0
    async with store.runtime.database.write() as connection:
        await connection.execute(update(Job).values(read_until=db_now() - 1))
    await purge(store.jobs)
    assert await store.count(VectorBlock) == 0
    assert await store.count(IdempotencyKey) == 0
