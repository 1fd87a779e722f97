"""A provider that is down is waited for: no attempt is spent, the job says why, all go on when it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from api.jobs.render import job_object
from engine.account_check import check_account
from engine.jobs.reading.job_rows import get_job
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import Job, JobStatus, ShardState
from models.outage import RouteOutage
from providers.fake import FakeScript
from tests.integration import store as stores
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import Store
from tests.running import run_shard, sweep

ONE_ROUTE = stores.CONFIG.split(f'[[models."{stores.MODEL}".routes]]\nprovider = "two"')[0]
REASONS: list[dict[str, Any]] = [{"status": 401}, {"status": 500}, {"status": 404}, {"reply": "html"}]


def opened(database_url: str, folder: Path, **settings: Any) -> Store:
    """A store with one route, whose upstream does what `play` says."""
    store = Store.open(database_url, folder, **settings)
    (folder / "embedmill.toml").write_text(ONE_ROUTE)
    return store.another()


def play(store: Store, *rules: dict[str, Any]) -> None:
    for upstream in store.runtime.upstream._in_process._fakes.values():
        upstream.script = FakeScript.parse(list(rules))


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    store = opened(database_url, tmp_path)
    yield store
    await store.close()


async def run_due(store: Store, job_id: str) -> None:
    """What workers do with all shards that are due."""
    for shard_id in await store.shard_ids(job_id):
        await run_shard(store.runtime, shard_id, "w")


async def probe_now(store: Store, job_id: str) -> None:
    """Let the pause before the next probe be over, for everybody."""
    async with store.runtime.database.write() as connection:
        await connection.execute(update(RouteOutage).values(next_attempt_at=db_now() - 0.01))
        await connection.execute(update(Job).values(not_before=None))
    for shard_id in await store.shard_ids(job_id):
        await store.set_shard(shard_id, next_run_at=0.0)
    await store.runtime.router.outages.refresh(max_age_s=0.0)


async def outages(store: Store) -> list[Any]:
    await asyncio.gather(*store.runtime.router.outages._writing)
    async with store.runtime.database.read() as connection:
        return list((await connection.execute(select(*RouteOutage.__table__.columns))).all())


@pytest.mark.parametrize("trouble", REASONS, ids=lambda trouble: str(next(iter(trouble.values()))))
async def test_an_outage_spends_no_attempt_and_the_job_says_why(store: Store, trouble: dict[str, Any]) -> None:
    play(store, {"do": trouble})
    job_id = await store.submit(20)
    for _ in range(2 * stores.ATTEMPTS):
        await run_due(store, job_id)
        await probe_now(store, job_id)
    shards = await store.shards(job_id)
    assert [(shard.state, shard.attempt) for shard in shards] == [(ShardState.QUEUED, 0)] * 2
    job = job_object(await get_job(store.jobs, "p", job_id))
    assert (job["status"], job["counts"]["failed"], job["waiting_on"]) == (JobStatus.IN_PROGRESS, 0, "provider")
    waiting = job["waiting"]
    assert set(waiting) == {"provider", "code", "message", "advice", "since", "next_attempt_at"}
    assert waiting["provider"] == "one" and waiting["advice"] and waiting["message"]
    assert waiting["next_attempt_at"] - waiting["since"] < 60 and "inproc" not in str(waiting)
    [row] = await outages(store)
    assert (row.account, row.code) == ("one", waiting["code"]) and row.failures >= 1
    play(store)
    await probe_now(store, job_id)
    await run_due(store, job_id)
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    assert len(snapshot.with_vector) == 20 and snapshot.with_error == []
    job = job_object(await get_job(store.jobs, "p", job_id))
    assert (job["status"], job["waiting"], await outages(store)) == (JobStatus.COMPLETED, None, [])


async def test_another_process_waits_without_a_call_and_goes_on_when_the_first_is_answered(store: Store) -> None:
    other = store.another()
    play(store, {"do": {"status": 401}})
    play(other, {"do": {"status": 401}})
    one, two = await store.submit(10), await store.submit(10, tag="other")
    await run_due(store, one)
    await outages(store)
    async with store.runtime.database.write() as connection:  # however slow the machine is, no probe is due
        await connection.execute(update(RouteOutage).values(next_attempt_at=db_now() + 60.0))
    await run_due(other, two)
    assert [fake.script.calls for fake in other.runtime.upstream._in_process._fakes.values()] == [0, 0]
    assert job_object(await get_job(store.jobs, "p", two))["waiting"]["provider"] == "one"
    play(store)
    await probe_now(store, one)
    await run_due(store, one)
    assert await store.status(one) == JobStatus.COMPLETED and await outages(store) == []
    # The sweep lets the other job go on at once.
    play(other)
    await sweep(store.runtime)
    assert (await store.job(two)).not_before is None
    await other.runtime.router.outages.refresh(max_age_s=0.0)
    await run_due(other, two)
    assert await store.status(two) == JobStatus.COMPLETED
    await other.close()


async def test_only_one_process_makes_the_probe(store: Store) -> None:
    others = [store.another() for _ in range(3)]
    everyone = [store, *others]
    for each in everyone:
        play(each, {"do": {"status": 401, "latency_ms": 100}})
    job_id = await store.submit(40)
    await run_shard(store.runtime, (await store.shard_ids(job_id))[0], "w")
    await outages(store)
    for each in everyone:
        await each.runtime.router.outages.refresh(max_age_s=0.0)
    await probe_now(store, job_id)
    for each in everyone:
        play(each, {"do": {"status": 401, "latency_ms": 100}})
        await each.runtime.router.outages.refresh(max_age_s=0.0)
    shard_ids = await store.shard_ids(job_id)
    await asyncio.gather(
        *(run_shard(each.runtime, shard_id, "w") for each, shard_id in zip(everyone, shard_ids, strict=True))
    )
    calls = [fake.script.calls for each in everyone for fake in each.runtime.upstream._in_process._fakes.values()]
    # Its job has a `user`, which could be what the provider refuses: a call of ours may confirm the probe.
    assert [count for count in calls if count] in ([1], [2])
    for each in others:
        await each.close()


async def test_a_waiting_job_blocks_its_other_shards_and_a_job_of_another_model_runs(store: Store) -> None:
    play(store, {"do": {"status": 401}})
    job_id = await store.submit(50)
    await run_shard(store.runtime, (await store.shard_ids(job_id))[0], "w")
    store.notifier.queued = 0
    await sweep(store.runtime)
    assert store.notifier.queued == 0  # no worker is told of it before the next probe


async def test_inputs_fail_only_after_the_hours_of_the_setting(database_url: str, tmp_path: Path) -> None:
    store = opened(database_url, tmp_path, upstream_outage_hours=1e-6)
    play(store, {"do": {"status": 401}})
    job_id = await store.submit(10)
    await run_due(store, job_id)
    assert (await store.job(job_id)).failed == 0  # it has waited for no time yet
    await probe_now(store, job_id)
    await run_due(store, job_id)
    job = job_object(await get_job(store.jobs, "p", job_id))
    assert (job["status"], job["counts"]["failed"]) == (JobStatus.FAILED, 10)
    assert job["errors"][0]["code"] == "upstream_auth_failed" and "account one" in job["errors"][0]["message"]
    await store.close()


def outage_row(account: str, upstream_model: str, **instants: Any) -> dict[str, Any]:
    words = {"code": "c", "message": "m", "advice": "a"}
    return {"account": account, "upstream_model": upstream_model, "since": db_now(), **words, **instants}


@pytest.mark.parametrize(("account", "model"), [("removed", "m"), ("one", "corrected"), ("one", "m")])
async def test_an_outage_that_nobody_probes_any_more_is_forgotten(store: Store, account: str, model: str) -> None:
    async with store.runtime.database.write() as connection:
        rows = [
            outage_row(account, model, next_attempt_at=db_now() - 3700.0),
            outage_row("of another file", "m", next_attempt_at=db_now() - 60.0),  # of a process that is still alive
        ]
        for row in rows:
            await connection.execute(insert(RouteOutage).values(row))
    await store.runtime.router.outages.refresh(max_age_s=0.0)
    await sweep(store.runtime)
    assert [row.account for row in await outages(store)] == ["of another file"]
    await store.runtime.router.outages.refresh(max_age_s=0.0)
    assert list(store.runtime.router.outages.active) == [("of another file", "m")]


async def test_an_outage_of_a_route_in_use_outlives_every_sweep_of_another_configuration(store: Store) -> None:
    other = store.another()
    play(store, {"do": {"status": 401}})
    job_id = await store.submit(10)
    await run_due(store, job_id)
    await outages(store)
    async with store.runtime.database.write() as connection:  # it has lasted for a day, and is still probed
        await connection.execute(update(RouteOutage).values(since=db_now() - 86_400.0))
    await probe_now(store, job_id)
    await run_due(store, job_id)
    await outages(store)
    await sweep(other.runtime)
    assert [row.account for row in await outages(store)] == ["one"]
    await other.close()


async def test_a_test_of_an_account_ends_the_outages_of_models_that_it_no_longer_has(store: Store) -> None:
    play(store, {"do": {"status": 401}})
    async with store.runtime.database.write() as connection:
        for account, model in (("one", "m"), ("one", "corrected"), ("two", "m")):
            await connection.execute(insert(RouteOutage).values(outage_row(account, model, next_attempt_at=db_now())))
    await check_account(store.runtime, "one")
    assert {(row.account, row.upstream_model) for row in await outages(store)} == {("one", "m"), ("two", "m")}
    play(store)
    await check_account(store.runtime, "one")
    assert [row.account for row in await outages(store)] == ["two"]


async def test_without_a_database_each_process_waits_and_probes_by_itself(store: Store) -> None:
    play(store, {"do": {"status": 401}})
    job_id = await store.submit(10)
    await run_due(store, job_id)
    await outages(store)
    database = store.runtime.router.outages._database
    assert database is not None

    def away(*_: Any) -> Any:
        raise StorageUnavailable("away")

    outage_table = store.runtime.router.outages
    route = store.routes[0]
    outage = outage_table.of(route)
    assert outage is not None
    await asyncio.sleep(outage.next_attempt_in_s)
    outage_table._database = Away()  # type: ignore[assignment]
    assert await outage_table.claim_probe(route)
    assert not await outage_table.claim_probe(route)
    outage_table.resolve(route)
    await outage_table.close()
    outage_table._database = database
    assert len(await outages(store)) == 1
    await outage_table.refresh(max_age_s=0.0)  # what the database could not be told is told now
    assert await outages(store) == [] and not outage_table.active


class Away:
    """A database that does not answer."""

    def read(self) -> Any:
        raise StorageUnavailable("away")

    write = read
