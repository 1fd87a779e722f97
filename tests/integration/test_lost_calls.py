"""Calls of a killed worker are ambiguous: written down once, whoever finds them, and shown in the job."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.durability.call_journal import CallJournal, InFlightCall
from engine.jobs.recording.orphaned_calls import record_orphaned_calls
from engine.storage.database import Database
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import AmbiguousCall, JobStatus
from tests.fakes import unanswered_calls
from tests.integration.store import UPSTREAM_MODEL, Store
from tests.running import run_shard, sweep
from tests.waiting import until


@pytest.fixture
async def other(store: Store) -> AsyncIterator[Store]:
    other = store.another()
    yield other
    await other.close()


def left_by_a_dead_worker(folder: Path, job_id: str, count: int) -> None:
    log = CallJournal(folder)
    for number in range(count):
        log.begin(
            InFlightCall(f"call_{os.urandom(4).hex()}", "p", job_id, "shard", 1, "one", "m", 10 + number, time.time())
        )
    log.close()


def of_all_routes() -> float:
    return sum(unanswered_calls(provider, UPSTREAM_MODEL) for provider in ("one", "two"))


async def test_calls_of_the_dead_are_counted_once(store: Store, other: Store) -> None:
    job_id = await store.submit()
    folder = store.runtime.journal.folder
    left_by_a_dead_worker(folder, job_id, 3)
    left_by_a_dead_worker(folder, "a job that was deleted", 1)
    counted = unanswered_calls("one")
    await asyncio.gather(
        sweep(store.runtime), sweep(other.runtime), record_orphaned_calls(other.jobs, other.runtime.journal)
    )
    await sweep(store.runtime)
    job = await store.job(job_id)
    assert (job.ambiguous_calls, job.ambiguous_inputs) == (3, 33)
    assert await store.count(AmbiguousCall) == 4
    assert unanswered_calls("one") - counted == 4
    assert await store.count(AmbiguousCall, AmbiguousCall.reason == "worker_lost") == 4
    assert list(folder.iterdir()) == []


async def test_calls_that_came_to_their_end_leave_no_trace(store: Store) -> None:
    job_id = await store.submit()
    [shard_id] = await store.shard_ids(job_id)
    await run_shard(store.runtime, shard_id, "w")
    assert await store.status(job_id) == JobStatus.COMPLETED
    assert await store.count(AmbiguousCall) == 0
    store.runtime.journal.close()
    assert list(store.runtime.journal.folder.iterdir()) == []


async def test_a_call_that_was_cut_off_is_ambiguous(database_url: str, tmp_path: Path) -> None:
    store = Store.open(database_url, tmp_path)
    config = tmp_path / "embedmill.toml"
    slow = 'kind = "fake"\nscript = [{when = {contains = "number 0 "}, do = {latency_ms = 60000.0}}]'
    config.write_text(config.read_text().replace('kind = "fake"', slow))
    store = store.another()
    job_id = await store.submit(8)
    [shard_id] = await store.shard_ids(job_id)
    counted = of_all_routes()
    running = asyncio.create_task(run_shard(store.runtime, shard_id, "w"))

    async def half_is_recorded() -> bool:
        return bool((await store.job(job_id)).completed >= 4)

    await until(half_is_recorded)
    running.cancel()
    await asyncio.wait({running})
    job = await store.job(job_id)
    assert (job.ambiguous_calls, job.ambiguous_inputs, job.completed) == (1, 4, 4)
    assert of_all_routes() - counted == 1
    await store.set_shard(shard_id, next_run_at=db_now())
    await store.close()
    assert list((tmp_path / "flights").iterdir()) == []


async def test_a_call_that_is_found_twice_is_counted_once(store: Store) -> None:
    """Its process had written it down, and was killed before it could clear its note."""
    job_id = await store.submit()
    folder = store.runtime.journal.folder
    left_by_a_dead_worker(folder, job_id, 1)
    [log] = folder.iterdir()
    copy = log.read_bytes()
    counted = unanswered_calls("one")
    assert await record_orphaned_calls(store.jobs, store.runtime.journal) == 1
    log.write_bytes(copy)
    assert await record_orphaned_calls(store.jobs, store.runtime.journal) == 0
    assert unanswered_calls("one") - counted == 1


class AbsentDatabase(Database):
    """A database that no transaction reaches."""

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        raise StorageUnavailable("the database does not answer")
        yield


async def test_a_journal_that_cannot_be_recorded_now_is_left_to_the_next_round(store: Store) -> None:
    job_id = await store.submit()
    left_by_a_dead_worker(store.runtime.journal.folder, job_id, 2)
    absent = AbsentDatabase(store.runtime.database.url)
    with pytest.raises(StorageUnavailable):
        await record_orphaned_calls(replace(store.jobs, database=absent), store.runtime.journal)
    await absent.close()
    assert await record_orphaned_calls(store.jobs, store.runtime.journal) == 2
