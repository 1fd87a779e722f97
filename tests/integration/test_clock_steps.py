"""The database's clock is set back or forward, or everything sleeps: it costs seconds, and nobody is taken for dead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from api.jobs.render import job_object
from engine.batches.steps import claim_step
from engine.config.settings import WORKER_SEEN_S
from engine.corpus.lines import ParsedRecords
from engine.jobs.ingest import job_intake
from engine.jobs.leasing import claim as claims
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording.record_outcomes import record
from engine.process.clock import DatabaseClock, machine_clock
from engine.queue import worker_heartbeats
from engine.webhooks.outbox import record_event
from models.base import db_now, new_id
from models.batch import JobStep, StepKind
from models.file import FilePart
from models.job import IdempotencyKey, JobStatus, Shard, ShardState
from models.outage import RouteOutage
from models.webhook import EventType, WebhookDelivery
from models.worker import WorkerProcess
from tests.integration.clocks import SetClock, settable_clock
from tests.integration.store import Store, landed, text_of
from tests.integration.webhooks import subscribe
from tests.running import dispatch, sweep
from tests.services import async_url


@dataclass
class Time:
    """The database's clock, which may be set, and this machine's, by which time passes."""

    store: Store
    database: SetClock
    passed_s: float = 0.0
    step_s: float = 0.0

    def machine(self) -> float:
        return machine_clock() + self.passed_s

    async def set_by(self, seconds: float) -> None:
        """Somebody sets the database's clock."""
        self.step_s += seconds
        await self.database.ahead(self.passed_s + self.step_s)

    async def pass_by(self, seconds: float) -> None:
        self.passed_s += seconds
        await self.database.ahead(self.passed_s + self.step_s)


@pytest.fixture
async def clocks(database_url: str, tmp_path: Path) -> AsyncIterator[Time]:
    url = (
        async_url(database_url) if "postgres" in database_url else database_url.replace("sqlite:", "sqlite+aiosqlite:")
    )
    async with settable_clock(url) as clock:
        store = Store.open(database_url, tmp_path)
        clocks = Time(store, clock)
        store.runtime.database_clock = DatabaseClock(clocks.machine)
        await sweep(store.runtime)  # the look before
        yield clocks
        await store.close()


def lines(count: int) -> ParsedRecords:
    lines = ParsedRecords()
    for index in range(count):
        lines.add(text_of("text", index))
    return lines


@pytest.mark.parametrize("seconds", [-3600.0, -120.0, -90.0, 600.0, 90_000.0])
async def test_a_step_is_seen_once(clocks: Time, seconds: float) -> None:
    watched = DatabaseClock(clocks.machine)

    async def look() -> float:
        asked_at = clocks.machine()
        async with clocks.store.runtime.database.read() as connection:
            return watched.observe((await connection.execute(select(db_now()))).scalar_one(), asked_at).step_s

    assert await look() == 0
    await clocks.pass_by(300)
    assert await look() == 0
    await clocks.set_by(seconds)
    assert abs(await look() - seconds) < 2
    assert await look() == 0


@pytest.mark.parametrize("seconds", [600.0, 90_000.0])
async def test_set_forward_nobody_who_lives_is_declared_dead(clocks: Time, seconds: float) -> None:
    store = clocks.store
    await worker_heartbeats.heartbeat(store.runtime.database, "w", slots=1)
    [held] = await store.claim_all(await store.submit())
    reservation = await job_intake.reserve(store.jobs, "p", "key")
    assert isinstance(reservation, job_intake.Reservation)
    key_job = reservation.job_id
    async with store.receiving_as(reservation) as intake:
        await intake.add(lines(25))
        await clocks.set_by(seconds)
        for _ in range(2):
            await sweep(store.runtime)
        assert await worker_heartbeats.count_alive(store.runtime.database, WORKER_SEEN_S) == 1
        assert (await store.shards(held.job_id))[0].state == ShardState.RUNNING
        assert await claims.heartbeat(store.jobs, held)
        await intake.finish(b"fingerprint")
    for each in (held, *await store.claim_all(key_job)):
        await record(store.jobs, each, landed(each, route=store.routes[0]))
    assert [await store.status(job_id) for job_id in (held.job_id, key_job)] == [JobStatus.COMPLETED] * 2
    assert await job_intake.reserve(store.jobs, "p", "key") == job_intake.IdempotentReplay(key_job, b"fingerprint")


async def test_set_forward_the_dead_are_found_a_heartbeat_later(clocks: Time) -> None:
    store = clocks.store
    [held] = await store.claim_all(job_id := await store.submit())
    async with store.receiving() as intake:
        await intake.add(lines(25))
        await store.set_job(intake.job_id, upload_owner="elsewhere/b/n:1#x")
        await clocks.set_by(600)
        await sweep(store.runtime)
        for _ in range(4):
            await clocks.pass_by(6)
            await sweep(store.runtime)
        assert (await store.shards(job_id))[0].state != ShardState.RUNNING
        assert await store.status(intake.job_id) == JobStatus.FAILED
        assert not await claims.heartbeat(store.jobs, held)


@pytest.mark.parametrize("seconds", [-90.0, -120.0, -86_400.0])
async def test_set_back_nothing_waits_for_the_old_time(clocks: Time, seconds: float) -> None:
    store = clocks.store
    job_id = await store.submit(30)
    first, second, _ = await store.shard_ids(job_id)
    running, waiting = await store.claim(first), await store.claim(second)
    await claims.release(store.jobs, waiting, delay_s=1.0, counts_as_attempt=True, reason="", waiting_on="provider")
    await store.set_job(job_id, not_before=db_now() + 10)
    await worker_heartbeats.heartbeat(store.runtime.database, "w", slots=1)
    key = await job_intake.reserve(store.jobs, "p", "key")
    await clocks.set_by(seconds)
    await sweep(store.runtime)
    assert await due_shards(store, job_id) == 2
    assert job_object(await get_job(store.jobs, "p", job_id))["next_attempt_at"] is None
    async with store.runtime.database.read() as connection:
        now = (await connection.execute(select(db_now()))).scalar_one()
        seen_at = (await connection.execute(select(WorkerProcess.seen_at))).scalar_one()
        key_until = (await connection.execute(select(IdempotencyKey.expires_at))).scalar_one()
    settings = store.runtime.settings
    running_until = (await store.shards(job_id))[0].lease_until
    assert seen_at <= now
    assert max(running_until, key_until) <= now + settings.lease_s and isinstance(key, job_intake.Reservation)
    # The worker of the first is dead: that is found when its lease is over, not when the old time comes again.
    await clocks.pass_by(settings.lease_s + 1)
    await sweep(store.runtime)  # so long after the last that it cannot know who lived: one heartbeat more
    await clocks.pass_by(1.6 * settings.heartbeat_s)
    await sweep(store.runtime)
    assert (await store.shards(job_id))[0].state != ShardState.RUNNING
    assert running.fence == 1


async def insert_step(store: Store, *, lease_s: float | None) -> str:
    """A step of a job in progress, due now; with `lease_s`, under a lease of another machine's worker."""
    job_id = await store.submit()
    async with store.runtime.database.write() as connection:
        await connection.execute(
            insert(JobStep).values(
                job_id=job_id,
                project="p",
                kind=StepKind.INGEST,
                due_at=db_now(),
                fence=1,
                lease_until=None if lease_s is None else db_now() + lease_s,
                worker=None if lease_s is None else "elsewhere/b/n:1",
            )
        )
    return job_id


async def insert_part(store: Store) -> None:
    """A part of a file that is being received."""
    async with store.runtime.database.write() as connection:
        lease_until = db_now() + store.runtime.settings.lease_s
        await connection.execute(
            insert(FilePart).values(id=new_id("part"), project="p", created_at=db_now(), lease_until=lease_until)
        )


async def values_of(store: Store, *columns: object) -> list[float]:
    async with store.runtime.database.read() as connection:
        return list((await connection.execute(select(*columns, db_now()))).one())  # type: ignore[call-overload]


@pytest.mark.parametrize("seconds", [-90.0, -3600.0, -86_400.0])
async def test_set_back_steps_parts_and_deliveries_do_not_wait_for_the_old_time(clocks: Time, seconds: float) -> None:
    store = clocks.store
    due_id = await insert_step(store, lease_s=None)
    await insert_part(store)
    await subscribe(store, "https://127.0.0.1:1")
    async with store.runtime.database.write() as connection:
        await record_event(connection, EventType.JOB_FAILED, project="p", job_id=due_id, subject_id=due_id)
    await clocks.set_by(seconds)
    await sweep(store.runtime)
    step = await claim_step(store.jobs, "w")
    assert step is not None and step.job_id == due_id
    part_until, now = await values_of(store, FilePart.lease_until)
    assert now < part_until <= now + store.runtime.settings.lease_s
    next_attempt_at, now = await values_of(store, WebhookDelivery.next_attempt_at)
    assert next_attempt_at <= now


async def test_set_back_the_lease_of_a_step_ends_in_its_time(clocks: Time) -> None:
    store = clocks.store
    await insert_step(store, lease_s=store.runtime.settings.lease_s)
    await clocks.set_by(-3600.0)
    await sweep(store.runtime)
    assert await claim_step(store.jobs, "w") is None
    await clocks.pass_by(store.runtime.settings.lease_s + 1)
    assert await claim_step(store.jobs, "w") is not None


async def test_set_forward_steps_keep_their_leases_and_parts_their_writers(clocks: Time) -> None:
    store = clocks.store
    await insert_step(store, lease_s=store.runtime.settings.lease_s)
    await insert_part(store)
    await clocks.set_by(600.0)
    await sweep(store.runtime)
    assert await claim_step(store.jobs, "w") is None
    part_until, now = await values_of(store, FilePart.lease_until)
    assert part_until > now
    await clocks.pass_by(1.6 * store.runtime.settings.heartbeat_s)
    assert await claim_step(store.jobs, "w") is not None


@pytest.mark.parametrize("seconds", [-3.0, -90.0, -86_400.0])
@pytest.mark.parametrize("state", [ShardState.QUEUED, ShardState.RUNNING])
async def test_set_back_a_shard_of_any_state_can_be_claimed(clocks: Time, state: ShardState, seconds: float) -> None:
    """One that waited, or whose worker died, used to wait for the time of before: nobody could claim it."""
    store = clocks.store
    [shard_id] = await store.shard_ids(await store.submit(10))
    if state is ShardState.RUNNING:
        assert await claims.claim(store.jobs, shard_id, "killed") is not None
    await clocks.set_by(seconds)
    await sweep(store.runtime)
    if state is ShardState.RUNNING:
        await clocks.pass_by(store.runtime.settings.lease_s + 1)
        await sweep(store.runtime)
        await clocks.pass_by(1.6 * store.runtime.settings.heartbeat_s)
        await sweep(store.runtime)
    held = await claims.claim(store.jobs, shard_id, "next")
    assert held is not None and held.count == 10


@pytest.mark.parametrize("seconds", [-90.0, -86_400.0])
async def test_set_back_a_route_that_is_down_is_probed_at_once(clocks: Time, seconds: float) -> None:
    store = clocks.store
    row = {"account": "one", "upstream_model": "m", "code": "c", "message": "m", "advice": "a", "since": db_now()}
    async with store.runtime.database.write() as connection:
        await connection.execute(insert(RouteOutage).values(**row, next_attempt_at=db_now() + 5.0))
    await clocks.set_by(seconds)
    await sweep(store.runtime)
    await store.runtime.router.outages.refresh(max_age_s=0.0)
    assert await store.runtime.router.outages.claim_probe(store.routes[0])


@pytest.mark.parametrize("seconds", [-120.0, 600.0])
async def test_a_step_leaves_no_rate_behind(clocks: Time, seconds: float) -> None:
    store = clocks.store
    job_id = await store.submit(30)
    one, two, _ = await store.claim_all(job_id)
    await record(store.jobs, one, landed(one, route=store.routes[0]))
    await clocks.set_by(seconds)
    await sweep(store.runtime)
    job = job_object(await get_job(store.jobs, "p", job_id))
    assert (job["rate"]["inputs_per_second"], job["eta_seconds"]) == (0.0, None)
    await record(store.jobs, two, landed(two, route=store.routes[0]))
    await clocks.pass_by(10)
    job = job_object(await get_job(store.jobs, "p", job_id))
    assert 0.5 < job["rate"]["inputs_per_second"] <= 1.0 and 10 <= job["eta_seconds"] <= 20


async def test_when_all_slept_nobody_is_dead_until_a_heartbeat_has_passed(clocks: Time) -> None:
    """A laptop's lid was closed for 75 s: scheduler, worker and upload wake up together."""
    store = clocks.store
    [held] = await store.claim_all(job_id := await store.submit())
    async with store.receiving() as intake:
        await intake.add(lines(25))
        await clocks.pass_by(75)
        for _ in range(2):
            await sweep(store.runtime)
        assert await claims.heartbeat(store.jobs, held)
        await intake.finish(b"fingerprint")
    for each in (held, *await store.claim_all(intake.job_id)):
        await record(store.jobs, each, landed(each, route=store.routes[0]))
    assert [await store.status(each) for each in (job_id, intake.job_id)] == [JobStatus.COMPLETED] * 2


async def test_a_sweep_that_is_always_slow_finds_the_dead_all_the_same(clocks: Time) -> None:
    store = clocks.store
    await store.claim_all(job_id := await store.submit())
    for _ in range(8):
        await clocks.pass_by(20)
        await sweep(store.runtime)
    assert (await store.shards(job_id))[0].state != ShardState.RUNNING


async def test_a_step_in_an_empty_store_changes_nothing(clocks: Time) -> None:
    for seconds in (-120.0, 600.0):
        await clocks.set_by(seconds)
        await sweep(clocks.store.runtime)
    job_id = await clocks.store.submit()
    assert await dispatch(clocks.store.runtime) == 1
    assert await due_shards(clocks.store, job_id) == 1


async def due_shards(store: Store, job_id: str) -> int:
    """Shards of the job that a worker may claim now, by the clock of the database."""
    return await store.count(Shard, Shard.job_id == job_id, Shard.state == "queued", Shard.next_run_at <= db_now())
