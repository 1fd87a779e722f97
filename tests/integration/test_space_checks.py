"""Space checks: a second upstream of a model serves only once it has given the vectors of the first one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import case, select, update

from cli.commands.doctor.models import check_spaces, release_quarantine
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import BULK, EmbedRun, embed
from engine.observability.telemetry import REGISTRY
from engine.planning.packing import limits_of, pack
from engine.routing import space_checks
from engine.routing.route_report import report
from engine.routing.router import apply_gateway_options
from engine.runtime import Runtime
from models.base import db_now
from models.embedding import Options
from models.errors import RouteDown, RouteQuarantined, UpstreamAuthFailed
from models.outage import RouteOutage
from models.space_check import SpaceCheck
from models.usage import OPERATOR_PROJECT, UsageRecord
from providers.base import UpstreamReply, UpstreamRequest
from tests.fakes import FakeWire, fake
from tests.integration.store import MODEL, WIDTH, RecordingNotifier, Store
from tests.running import run_shard
from tests.waiting import until

CONFIG = f"""
[providers.one]
kind = "openai"
base_url = "http://one/v1"
[providers.two]
kind = "openai"
base_url = "http://two/v1"

[models."{MODEL}"]
dimensions = {WIDTH}
space = "s"
input_usd_per_million_tokens = "0.02"
# more of the model
[[models."{MODEL}".routes]]
provider = "one"
model = "m"
[[models."{MODEL}".routes]]
provider = "two"
model = "m"
priority = 1
"""
UNEQUAL = CONFIG.replace('provider = "two"\nmodel = "m"', 'provider = "two"\nmodel = "other"')


class Place:
    """Processes that share a database and two upstreams."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.wire = FakeWire(one=fake(), two=fake())
        for each in self.wire.hosts.values():
            each.width = WIDTH  # type: ignore[union-attr]
        self._config = folder / "spaces.toml"
        self._opened: list[Runtime] = []

    def process(self, config: str = CONFIG) -> Store:
        self._config.write_text(config)
        settings = self.store.runtime.settings
        changes: dict[str, Any] = {"config": str(self._config), "drift_check_every_s": 0.01}
        changed = type(settings)(**{name: getattr(settings, name) for name in settings.__slots__} | changes)
        runtime = Runtime.open(changed, wire=self.wire)
        runtime.notifier = notifier = RecordingNotifier()
        self._opened.append(runtime)
        return Store(runtime, notifier)

    def play(self, host: str, *rules: dict[str, Any]) -> None:
        self.wire.hosts[host] = upstream = fake(*rules)
        upstream.width = WIDTH

    async def close(self) -> None:
        for runtime in self._opened:
            await runtime.close()


class OtherModel:
    """An upstream that gives the vectors of another model under the name of the one asked for, so many times."""

    def __init__(self, times: int = 1_000_000) -> None:
        self.times, self.wrong = times, 0
        self._fake = fake()
        self._fake.width = WIDTH

    def __call__(self, request: UpstreamRequest) -> UpstreamReply:
        body = orjson.loads(request.body)
        if self.wrong < self.times:
            self.wrong += 1
            body |= {"model": "another"}
        sent = UpstreamRequest("POST", request.url, request.headers, orjson.dumps(body))
        reply = self._fake.answer(sent, 0.0).reply
        return UpstreamReply(reply.status, reply.headers, orjson.dumps(orjson.loads(reply.body) | {"model": "m"}))


@pytest.fixture
async def place(store: Store, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(store, tmp_path)
    yield made
    await made.close()


def reason(process: Store, account: str = "two") -> str | None:
    """Why the route of the account is not used."""
    [route] = [each for each in process.runtime.alias(MODEL).routes if each.provider == account]
    return process.runtime.router.unverified_reason(route)


async def verified(process: Store) -> bool:
    await process.runtime.space_monitor.refresh(process.runtime.alias(MODEL))
    return reason(process) is None


async def mismatched(process: Store) -> bool:
    await process.runtime.space_monitor.refresh(process.runtime.alias(MODEL))
    return "are not those of account one" in (reason(process) or "")


async def accounts(process: Store, **gateway: Any) -> list[str]:
    """Which accounts an embedding is sent to now."""
    runtime = process.runtime
    alias = apply_gateway_options(runtime.aliases, runtime.alias(MODEL), {"gateway": gateway})
    run = EmbedRun(runtime.upstream, runtime.router, alias, BULK, 2.0**62, OutcomeCollector(1, WIDTH))
    await embed(run, pack(["x"], [0], limits_of(alias.routes), WIDTH, Options()), concurrency=1)
    return [call.provider for call in run.calls]


async def age(process: Store, seconds: float) -> None:
    """Let the verification be so old, and no new check be due."""
    async with process.runtime.database.write() as connection:
        later = {"verified_at": db_now() - seconds, "checked_at": db_now() + 3600.0}
        await connection.execute(update(SpaceCheck).values(later))


async def test_a_second_route_serves_once_it_was_compared_and_the_probes_are_in_the_ledger(place: Place) -> None:
    process = place.process()
    assert reason(process) is not None and place.wire.sent == []
    assert await accounts(process) == ["one"]
    with pytest.raises(
        RouteQuarantined, match="account two, it is not verified yet to give the vectors of account one"
    ):
        await accounts(process, only=["two"])
    assert place.wire.hosts_called == ["one"]
    await until(lambda: verified(process), 10.0, what="the check")
    assert await accounts(process, only=["two"]) == ["two"]
    probes = [orjson.loads(each.body) for each in place.wire.sent[1:3]]
    assert [probe["input"] for probe in probes] == [list(space_checks.TEXTS)] * 2 and len(space_checks.TEXTS) == 3
    await process.runtime.usage.flush()
    async with process.runtime.database.read() as connection:
        rows = (await connection.execute(select(*UsageRecord.__table__.columns))).all()
    assert {(row.kind, row.code, row.project, row.alias) for row in rows} == {
        ("wasted", "space_check", OPERATOR_PROJECT, MODEL)
    }
    assert {row.provider for row in rows} == {"one", "two"} and all(row.cost_usd > 0 for row in rows)


async def test_a_new_process_knows_what_another_has_verified_before_its_first_call(place: Place) -> None:
    first = place.process()
    await until(lambda: verified(first), 10.0, what="the check")
    await age(first, 60.0)
    calls = len(place.wire.sent)
    second = place.process()
    await second.runtime.space_monitor.refresh(second.runtime.alias(MODEL))  # once
    assert await accounts(second, only=["two"]) == ["two"] and len(place.wire.sent) == calls + 1


async def test_a_route_of_another_space_is_quarantined_for_all_and_released_by_the_operator(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    first = place.process(UNEQUAL)
    await until(lambda: mismatched(first), 10.0, what="the quarantine")
    second = place.process(UNEQUAL)
    await second.runtime.space_monitor.refresh(second.runtime.alias(MODEL))
    labels = {"provider": "two", "model": "other", "space": "s"}
    for process in (first, second):
        assert await accounts(process) == ["one"]
        with pytest.raises(RouteQuarantined, match="its vectors are not those of account one"):
            await accounts(process, only=["two"])
        shown = report(process.runtime.router, process.runtime.alias(MODEL))
        assert [(each.status, each.breaker.state) for each in shown] == [("up", "closed"), ("quarantined", "open")]
        assert "are not those of account one" in (shown[1].breaker.reason or "")
    assert REGISTRY.get_sample_value("embedmill_route_space_mismatch", labels) == 1.0
    [line] = [each for each in caplog.records if each.name == "embedmill.spaces"]
    assert (line.__dict__["provider"], line.__dict__["code"]) == ("two", "route_quarantined")
    [row] = await space_checks.mismatches(first.runtime.database)
    assert (row.account, row.upstream_model) == ("two", "other") and row.similarity < 0.999
    assert await space_checks.forget(first.runtime.database, "two") == 1
    # What is compared now is equal.
    third = place.process(CONFIG)
    await until(lambda: verified(third), 10.0, what="the next check")


async def test_the_doctor_names_the_route_and_lets_it_be_compared_anew(place: Place) -> None:
    process = place.process(UNEQUAL)
    settings, aliases = process.runtime.settings, process.runtime.aliases
    await until(lambda: mismatched(process), 10.0, what="the quarantine")
    [finding] = await asyncio.to_thread(check_spaces, settings, aliases)
    assert finding.status == "fail" and "two other" in finding.detail and "--release two" in (finding.fix or "")
    assert (await asyncio.to_thread(release_quarantine, settings, "two")).status == "ok"
    assert (await asyncio.to_thread(release_quarantine, settings, "nobody")).status == "warn"


async def test_an_outage_of_the_first_is_covered_by_a_route_that_was_verified_within_a_day(place: Place) -> None:
    process = place.process()
    await until(lambda: verified(process), 10.0, what="the check")
    first = process.runtime.alias(MODEL).routes[0]
    place.play("one", {"do": {"status": 401}})
    process.runtime.router.report(first, UpstreamAuthFailed("the credential was refused", status=401))
    for age_s, serves in ((86_000.0, True), (87_000.0, False)):
        await age(process, age_s)
        other = place.process()
        other.runtime.router.report(first, UpstreamAuthFailed("the credential was refused", status=401))
        await other.runtime.space_monitor.refresh(other.runtime.alias(MODEL))
        if serves:
            assert await accounts(other) == ["two"]
        else:
            calls = place.wire.hosts_called.count("two")
            with pytest.raises(RouteDown, match=r"refused.*Account two does not stand in: it is not verified"):
                await accounts(other)
            assert place.wire.hosts_called.count("two") == calls


async def test_a_job_waits_for_the_first_route_and_never_mixes_in_an_unverified_one(place: Place) -> None:
    process = place.process()
    place.play("one", {"do": {"status": 401}})
    job_id = await process.submit(4)
    [shard_id] = await process.shard_ids(job_id)
    await run_shard(process.runtime, shard_id, "w")
    job = await process.job(job_id)
    assert (job.status, job.completed, job.waiting_on) == ("in_progress", 0, "provider")
    assert [shard.attempt for shard in await process.shards(job_id)] == [0]
    texts = [text for sent in place.wire.sent for text in orjson.loads(sent.body)["input"]]
    assert any("number" in text for text in texts)
    sent_to_two = [sent for sent in place.wire.sent if "//two/" in sent.url]
    assert all(orjson.loads(sent.body)["input"] == list(space_checks.TEXTS) for sent in sent_to_two)


async def test_one_deviation_is_no_mismatch(place: Place) -> None:
    place.wire.hosts["two"] = upstream = OtherModel(times=1)
    process = place.process()
    await until(lambda: verified(process), 10.0, what="the check")
    assert upstream.wrong == 1


async def test_a_check_without_an_answer_proves_nothing_and_is_made_again(place: Place) -> None:
    place.play("two", {"times": 2, "do": {"status": 500}})
    process = place.process()
    await until(lambda: verified(process), 10.0, what="the check")
    assert place.wire.hosts_called.count("two") >= 3


async def test_a_route_that_serves_and_changes_is_quarantined_and_its_jobs_say_so(place: Place) -> None:
    process = place.process()
    await until(lambda: verified(process), 10.0, what="the check")
    job_id = await process.submit(4)
    place.wire.hosts["two"] = OtherModel()
    await until(lambda: mismatched(process), 10.0, what="the quarantine")
    [warning] = (await process.job(job_id)).warnings
    assert warning["code"] == "route_quarantined" and "two gave other vectors than provider one" in warning["message"]


async def test_a_second_route_that_is_down_is_found_up_by_its_check(place: Place) -> None:
    process = place.process()
    second = process.runtime.alias(MODEL).routes[1]
    process.runtime.router.report(second, UpstreamAuthFailed("the credential was refused", status=401))
    await until(lambda: verified(process), 10.0, what="the check")
    assert process.runtime.router.outages.of(second) is None


async def test_no_health_probe_goes_to_a_route_of_another_space(place: Place) -> None:
    """The vector of a probe is kept."""
    process = place.process(UNEQUAL)
    await until(lambda: mismatched(process), 10.0, what="the quarantine")
    outages = process.runtime.router.outages
    for route in process.runtime.alias(MODEL).routes:
        outages.report(route, UpstreamAuthFailed("the credential was refused", status=401))
    await asyncio.gather(*outages._writing)
    async with process.runtime.database.write() as connection:
        due = case((RouteOutage.account == "two", db_now() - 1.0), else_=db_now() + 60.0)
        await connection.execute(update(RouteOutage).values(next_attempt_at=due))
    await outages.refresh(max_age_s=0.0)
    calls = len(place.wire.sent)
    with pytest.raises(RouteDown):
        await accounts(process)
    assert place.wire.hosts_called[calls:] == []


async def test_routes_with_templates_are_compared_as_documents(place: Place) -> None:
    templates = 'query_template = "query: {text}"\ndocument_template = "passage: {text}"\n'
    process = place.process(CONFIG.replace("# more of the model\n", templates))
    await until(lambda: verified(process), 10.0, what="the check")
    assert orjson.loads(place.wire.sent[0].body)["input"] == [f"passage: {text}" for text in space_checks.TEXTS]


async def test_a_route_that_takes_one_input_a_call_gets_one(place: Place) -> None:
    process = place.process(CONFIG.replace("priority = 1", "priority = 1\nmax_inputs_per_call = 1"))
    await until(lambda: verified(process), 10.0, what="the check")
    assert place.wire.hosts_called == ["one", "two", "two", "two"]


ONE_ROUTE = CONFIG.split(f'[[models."{MODEL}".routes]]\nprovider = "two"')[0]
SAME_UPSTREAM = CONFIG.replace('provider = "two"\nmodel', 'provider = "one"\nmodel')
TRUSTED = CONFIG.replace("# more of the model\n", "verify_spaces = false\n")


@pytest.mark.parametrize("config", [ONE_ROUTE, SAME_UPSTREAM, TRUSTED], ids=["one route", "one upstream", "declared"])
async def test_nothing_is_compared_where_there_is_nothing_to_compare_or_the_operator_knows(
    place: Place, config: str
) -> None:
    process = place.process(config)
    assert not process.runtime.space_monitor.has_checks and not process.runtime.router.unverified
    await process.runtime.space_monitor.refresh(process.runtime.alias(MODEL))
    assert await accounts(process) == ["one"] and len(place.wire.sent) == 1
