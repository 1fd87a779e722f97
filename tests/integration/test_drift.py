"""Drift checks: a model that changes behind a route is noticed, the route left out by all, and the job says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import update

from api.jobs.render import job_object
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import BULK, EmbedRun, embed
from engine.jobs.reading.job_rows import get_job
from engine.planning.packing import limits_of, pack
from engine.routing import drift
from engine.runtime import Runtime
from models.base import db_now
from models.drift import DriftCheck
from models.embedding import Options
from models.errors import RouteQuarantined
from models.job import ShardState
from providers.base import UpstreamReply, UpstreamRequest
from tests.fakes import FakeWire, fake
from tests.integration.store import MODEL, WIDTH, RecordingNotifier, Store
from tests.running import run_shard
from tests.waiting import until

CONFIG = f"""
[providers.one]
kind = "openai"
base_url = "http://one/v1"
drift_probe = "a text that never changes"
[providers.two]
kind = "openai"
base_url = "http://two/v1"

[models."{MODEL}"]
dimensions = {WIDTH}
space = "s"
verify_spaces = false
[[models."{MODEL}".routes]]
provider = "one"
model = "m"
"""
SECOND = f"""
[[models."{MODEL}".routes]]
provider = "two"
model = "m"
priority = 1
"""


class Changing:
    """An upstream whose model becomes another one."""

    def __init__(self) -> None:
        self.model = "m"
        self.asked = 0
        self.wrong_once = False
        self._fake = fake()
        self._fake.width = WIDTH

    def __call__(self, request: UpstreamRequest) -> UpstreamReply:
        call = orjson.loads(request.body)
        model = self.model
        if call["input"] == ["a text that never changes"]:
            self.asked += 1
            model, self.wrong_once = ("another model" if self.wrong_once else model), False
        body = orjson.dumps(call | {"model": model})
        return self._fake.answer(UpstreamRequest("POST", request.url, request.headers, body), 0.0).reply


class Place:
    """Processes that share a database and an upstream."""

    def __init__(self, store: Store, folder: Path, routes: str) -> None:
        self.store = store
        self.upstream = Changing()
        self._config = folder / "drift.toml"
        self._config.write_text(CONFIG + routes)
        self._opened: list[Runtime] = []

    def process(self) -> Store:
        settings = self.store.runtime.settings
        changes: dict[str, Any] = {"config": str(self._config), "drift_check_every_s": 0.01}
        changed = type(settings)(**{name: getattr(settings, name) for name in settings.__slots__} | changes)
        second = fake()
        second.width = WIDTH
        runtime = Runtime.open(changed, wire=FakeWire(one=self.upstream, two=second))
        runtime.notifier = notifier = RecordingNotifier()
        self._opened.append(runtime)
        return Store(runtime, notifier)

    async def close(self) -> None:
        for runtime in self._opened:
            await runtime.close()


@pytest.fixture(params=["", SECOND], ids=["alone", "with another"])
async def place(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made = Place(store, tmp_path, request.param)
    yield made
    await made.close()


async def looked(process: Store, *, until_asked: int, place: Place) -> None:
    async def asked() -> bool:
        await process.runtime.drift_monitor.refresh()
        return place.upstream.asked >= until_asked

    await until(asked, 10.0, what="the drift check")


async def quarantined(process: Store) -> bool:
    await process.runtime.drift_monitor.refresh()
    return bool(process.runtime.router.quarantined)


async def hosts(process: Store) -> list[str]:
    """Which upstreams an embedding goes to now."""
    runtime = process.runtime
    alias = runtime.alias(MODEL)
    new_run = EmbedRun(runtime.upstream, runtime.router, alias, BULK, 2.0**62, OutcomeCollector(1, WIDTH))
    await embed(new_run, pack(["x"], [0], limits_of(alias.routes), WIDTH, Options()), concurrency=1)
    return [call.provider for call in new_run.calls]


async def test_a_changed_model_is_quarantined_for_all_and_the_job_says_so(place: Place) -> None:
    first = place.process()
    alone = len(first.runtime.alias(MODEL).routes) == 1
    job_id = await first.submit(10)
    await looked(first, until_asked=3, place=place)
    assert not await quarantined(first) and await hosts(first) == ["one"]

    place.upstream.model = "another model"
    second = place.process()  # knows the reference from the database alone
    await until(lambda: quarantined(second), 10.0, what="the quarantine")
    await until(lambda: quarantined(first), 10.0, what="the quarantine in the other process")
    third = place.process()
    await third.runtime.drift_monitor.refresh()  # one look, before its first call, is enough
    assert third.runtime.router.quarantined == {("one", "m", "s")}

    [shard_id] = await first.shard_ids(job_id)
    await run_shard(third.runtime, shard_id, "w")
    job = job_object(await get_job(first.jobs, "p", job_id))
    [warning] = job["warnings"]
    assert warning["code"] == "route_quarantined" and "one" in warning["message"]
    if alone:
        [shard] = await first.shards(job_id)
        assert (shard.state, shard.attempt, job["waiting_on"]) == (ShardState.QUEUED, 0, "provider")
        with pytest.raises(RouteQuarantined):
            await hosts(third)
    else:
        assert job["status"] == "completed" and await hosts(third) == ["two"]

    assert [row.account for row in await drift.quarantined(first.runtime.database)] == ["one"]
    assert await drift.unquarantine(first.runtime.database, "one") == 1

    async def released() -> bool:
        return not await quarantined(third)

    await until(released, 10.0, what="the release")
    assert await hosts(third) == ["one"]


async def test_an_answer_that_is_wrong_once_is_no_other_model(place: Place) -> None:
    process = place.process()
    await looked(process, until_asked=2, place=place)
    place.upstream.wrong_once = True
    await looked(process, until_asked=place.upstream.asked + 4, place=place)
    assert not place.upstream.wrong_once and not await quarantined(process)


async def test_without_a_probe_nothing_is_asked_or_read(store: Store) -> None:
    await store.runtime.drift_monitor.refresh()
    assert await store.count(DriftCheck) == 0


async def test_a_quarantine_by_another_process_is_read_within_five_seconds(place: Place) -> None:
    runtime = place.process().runtime
    now = 1000.0
    monitor = drift.DriftMonitor(
        runtime.database,
        runtime.upstream,
        runtime.router,
        runtime.usage,
        list(runtime.aliases.values()),
        every_s=3600.0,
        similarity=0.99,
        clock=lambda: now,
    )
    await monitor.refresh()
    await until(lambda: recorded_probe(place.store), 10.0, what="the reference")
    async with runtime.database.write() as connection:
        await connection.execute(update(DriftCheck).values(quarantined_at=db_now()))

    async def is_read() -> bool:
        await monitor.refresh()
        return bool(runtime.router.quarantined)

    now = 1004.9
    assert not await is_read()
    now = 1005.1
    await until(is_read, 5.0, what="the quarantine")
    await monitor.close()


async def recorded_probe(store: Store) -> bool:
    return await store.count(DriftCheck, DriftCheck.similarity == 1.0) == 1
