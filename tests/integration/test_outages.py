"""A database that goes away under paid results, a frozen worker, a silent broker: nothing is lost or paid twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.job_store import JobStore
from engine.jobs.execution.worker import Worker
from engine.jobs.leasing import claim as claims
from engine.jobs.maintenance.clock_steps import extend_leases_after_outage
from engine.jobs.recording.record_outcomes import record
from engine.jobs.recording.spool_replay import decode_spool, encode_spool, replay
from engine.storage.database import Database
from engine.upstream.call import Upstream
from models.base import db_now
from models.embedding import Call
from models.errors import StorageUnavailable
from models.job import JobStatus, ShardState
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake import fake_vectors
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import UPSTREAM_MODEL, WIDTH, Store, landed, text_of, writer_of
from tests.running import dispatch, run_shard, sweep
from tests.waiting import until
from workers.idle import IdleWatch

FROZEN_S = 4.2  # past the lease of these tests
SILENCE_S = 0.35  # past what the watchdog of these tests lets pass


class FailingDatabase(Database):
    """A database that can go away, and that can lose the answer to a commit."""

    away = False
    answers_lost = 0
    unknown_faults = 0  # so many writes raise what nobody knows

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        self._check()
        async with super().read() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        self._check()
        async with super().write() as connection:
            yield connection
            if self.unknown_faults:
                self.unknown_faults -= 1
                raise RuntimeError("a fault that nobody knows")
        if self.answers_lost:
            self.answers_lost -= 1
            raise StorageUnavailable("the answer was lost")

    def _check(self) -> None:
        if self.away:
            raise StorageUnavailable("away")


class WatchedUpstream(Upstream):
    """Counts the calls, and lets something happen before the reply to one of them."""

    calls = 0
    at_call: Any = None

    async def send(self, request: UpstreamRequest, *, deadline: float, timeout_s: float) -> UpstreamReply:
        self.calls += 1
        reply = await super().send(request, deadline=deadline, timeout_s=timeout_s)
        if self.at_call is not None:
            self.at_call(self.calls)
        return reply


class Bench:
    """A store on a database that fails on demand, with an upstream whose calls are counted."""

    def __init__(self, store: Store) -> None:
        self.store = store
        runtime = store.runtime
        self.database = FailingDatabase(runtime.database.url)
        self._real, runtime.database = runtime.database, self.database
        runtime.store = JobStore(self.database, runtime.settings)
        accounts = [route.account for route in store.routes]
        self.upstream = WatchedUpstream(
            runtime.upstream._transport, accounts, runtime.limiters, max_reply_bytes=1 << 20
        )
        runtime.upstream = self.upstream

    async def close(self) -> None:
        await self._real.close()
        self.database.away = False
        await self.store.close()

    def spooled(self) -> list[Path]:
        return sorted((self.store.runtime.settings.data_dir / "spool").glob("*"))


@pytest.fixture
async def bench(database_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(Store.open(database_url, tmp_path, shard_concurrency=1, lease_s=4.0))
    yield bench
    await bench.close()


async def checked(store: Store, job_id: str) -> DatabaseSnapshot:
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check(lambda indexes: fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL))
    return snapshot


async def only(store: Store, job_id: str) -> str:
    [shard_id] = await store.shard_ids(job_id)
    return shard_id


@pytest.mark.parametrize("faults", [1, 2, 3])
async def test_results_are_recorded_again_after_a_fault_that_passes(bench: Bench, faults: int) -> None:
    store = bench.store
    shard_id = await only(store, job_id := await store.submit(3))
    bench.upstream.at_call = lambda number: setattr(bench.database, "unknown_faults", faults)
    await run_shard(store.runtime, shard_id, "w")
    assert bench.upstream.calls == 1
    await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED


async def test_results_outlast_an_outage_in_the_spool_and_are_paid_once(bench: Bench) -> None:
    store = bench.store
    shard_id = await only(store, job_id := await store.submit(10))
    bench.upstream.at_call = lambda number: setattr(bench.database, "away", True)
    running = asyncio.create_task(run_shard(store.runtime, shard_id, "w"))
    await until(bench.spooled)
    async with asyncio.timeout(15):
        assert await replay(store.jobs, store.runtime.spool) == 0  # its worker lives
        bench.upstream.at_call, bench.database.away = None, False
        await running
    assert bench.upstream.calls == 3 and bench.spooled() == []
    await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED


async def test_what_a_dead_worker_spooled_is_recorded_before_the_shard_is_claimed_again(bench: Bench) -> None:
    store = bench.store
    held = await store.claim(await only(store, job_id := await store.submit(10)))
    writer = writer_of(store, held)
    bench.database.away = True
    for part in landed(held, range(8), route=store.routes[0]):
        writer.add(part)
    closing = asyncio.create_task(writer.close())
    await until(bench.spooled)
    closing.cancel()  # the process ends
    await asyncio.gather(closing, return_exceptions=True)
    [file] = bench.spooled()  # also where the end interrupted the write
    assert file.suffix == ".spool"
    bench.database.away = False
    await store.expire_lease(held.shard_id)
    await asyncio.gather(sweep(store.runtime), sweep(store.runtime))
    assert bench.spooled() == []
    assert (await store.claim(held.shard_id)).open_positions() == [8, 9]
    await checked(store, job_id)


async def test_a_damaged_file_is_set_aside_and_a_late_one_dropped(store: Store) -> None:
    job_id = await store.submit(10)
    [held] = await store.claim_all(job_id)
    parts = landed(held, route=store.routes[0])
    spool = store.runtime.spool
    whole = encode_spool(held, parts, "use_1")
    for body in (whole[:-9], b"not ours", whole, whole):
        file = spool.write(held.shard_id, body)
        assert file is not None
        file.unlock()
    assert await replay(store.jobs, store.runtime.spool) == 4
    left = list((store.runtime.settings.data_dir / "spool").iterdir())
    assert [path.suffix for path in left] == [".bad", ".bad"]
    snapshot = await checked(store, job_id)
    assert len(snapshot.with_vector) == 10 and await store.status(job_id) == JobStatus.COMPLETED


async def test_a_spool_file_says_all_that_a_record_needs(store: Store) -> None:
    [held] = await store.claim_all(await store.submit(10, bad={3}))
    parts = landed(held, route=store.routes[1])
    call = Call("one", "m", False, 200, 1.0, 2.0, wasted=True, cost_usd=Decimal("0.5"))
    again, same, record_id, calls = decode_spool(encode_spool(held, parts, "use_1", [call]))
    assert (record_id, calls) == ("use_1", [call])
    assert (again.shard_id, again.fence, again.options, again.count) == (held.shard_id, held.fence, held.options, 10)
    for before, after in zip(parts, same, strict=True):
        assert before.vectors is not None and after.vectors is not None
        assert (before.vectors == after.vectors).all() and before.cost_usd == after.cost_usd
        assert (before.indexes, before.tokens) == (after.indexes, after.tokens)
        assert after.route is not None and after.route.provider == store.routes[1].provider


async def test_a_commit_whose_answer_was_lost_is_not_counted_twice(bench: Bench) -> None:
    store = bench.store
    held = await store.claim(await only(store, job_id := await store.submit(10)))
    writer = writer_of(store, held)
    bench.database.answers_lost = 2
    for part in landed(held, range(6), route=store.routes[0]):
        writer.add(part)
    await writer.close()
    assert bench.database.answers_lost == 0
    snapshot = await checked(store, job_id)
    assert sorted(snapshot.with_vector) == list(range(6))


async def test_a_worker_that_was_frozen_past_its_lease_starts_no_call(bench: Bench) -> None:
    store = bench.store
    shard_id = await only(store, job_id := await store.submit(10))

    def freeze(number: int) -> None:
        if number == 1:
            time.sleep(FROZEN_S)  # nothing of the process runs, its heartbeat neither

    bench.upstream.at_call = freeze
    await run_shard(store.runtime, shard_id, "w")
    assert bench.upstream.calls == 1
    snapshot = await checked(store, job_id)
    assert len(snapshot.with_vector) == 4  # what it had paid for is kept
    assert (await store.shards(job_id))[0].state != ShardState.RUNNING


async def test_leases_are_spared_after_a_time_without_the_database(store: Store) -> None:
    lost, fresh = await store.submit(), await store.submit()
    [held], _ = await store.claim_all(lost), await store.claim_all(fresh)
    untouched = (await store.shards(fresh))[0].lease_until
    await store.expire_lease(held.shard_id)
    await extend_leases_after_outage(store.jobs, store.runtime.database_clock)
    await sweep(store.runtime)
    assert (await store.shards(lost))[0].state == ShardState.RUNNING
    assert (await store.shards(fresh))[0].lease_until == untouched
    assert await claims.heartbeat(store.jobs, held)


async def test_sweeps_and_dispatchers_at_once_do_everything_once(store: Store) -> None:
    other = store.another()
    jobs = [await store.submit(20) for _ in range(4)]
    for job_id in jobs[:2]:
        for held in await store.claim_all(job_id):
            await record(store.jobs, held, landed(held, range(4), route=store.routes[0]))
            await store.expire_lease(held.shard_id)
    both = (store.runtime, other.runtime)
    await asyncio.gather(*(duty(runtime) for duty in (sweep, dispatch, sweep) for runtime in both))
    await asyncio.gather(*(dispatch(runtime) for runtime in both))
    assert store.notifier.queued == 4
    for job_id in jobs:
        assert {shard.worker_crashes for shard in await store.shards(job_id)} == ({1} if job_id in jobs[:2] else {0})
        await checked(store, job_id)
    await other.close()


async def test_an_idle_worker_claims_what_waits_one_by_one_and_restarts_when_no_message_arrives(
    database_url: str, tmp_path: Path
) -> None:
    store = Store.open(database_url, tmp_path, lease_s=0.6)  # so it is idle for 0.05 s
    ended: list[bool] = []

    async def end(draining: asyncio.Event) -> None:
        ended.append(True)

    idle = IdleWatch(Worker(store.runtime, "w"), end, watchdog_s=0.3)

    async def claim_one() -> None:
        before = await done(store, job_id)
        await until(idle.claim_without_message, 5, every_s=0.02)
        assert await done(store, job_id) == before + 1

    store.notifier.works = False  # the broker is away
    job_id = await store.submit(60)
    await claim_one()
    await asyncio.sleep(SILENCE_S)
    await claim_one()
    store.notifier.works = True  # it answers, and its messages go to others
    await claim_one()
    await asyncio.sleep(SILENCE_S)
    await claim_one()
    assert await dispatch(store.runtime)
    await claim_one()
    idle.message_started()
    idle.message_done()
    await asyncio.sleep(SILENCE_S)
    assert not ended
    async with asyncio.timeout(5):
        while not ended:
            if await idle.claim_without_message():
                job_id = await store.submit(60)
            await asyncio.sleep(0.02)
    await checked(store, job_id)
    await store.close()


async def done(store: Store, job_id: str) -> int:
    return [shard.state for shard in await store.shards(job_id)].count(ShardState.DONE)


async def test_an_idle_worker_leaves_a_shard_to_its_message_for_five_seconds(store: Store) -> None:
    [shard_id] = await store.shard_ids(job_id := await store.submit(10))
    idle = IdleWatch(Worker(store.runtime, "w"), None)  # type: ignore[arg-type]
    assert not await idle.claim_without_message()
    await store.set_shard(shard_id, next_run_at=db_now() - 4.0)
    assert not await idle.claim_without_message() and await store.state_of(shard_id) == ShardState.QUEUED
    await store.set_shard(shard_id, next_run_at=db_now() - 5.5)
    assert await idle.claim_without_message()
    assert await store.status(job_id) == JobStatus.COMPLETED
