"""The doctor tells broken states of real services apart, and says what to do about each."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from sqlalchemy import insert

from cli.commands.doctor.accounts import accounts, probe_cost
from cli.commands.doctor.brokers import broker, find_broker_fault
from cli.commands.doctor.machine import machine
from cli.commands.doctor.models import check_drift
from cli.commands.doctor.outages import outages
from cli.commands.doctor.quotas import quotas
from cli.commands.doctor.storage import pepper
from cli.data_dir import DataDir
from cli.up.instance_lock import instance_lock
from engine.config import config_file
from engine.config.settings import Settings
from engine.limiter.bucket import AcquireRequest, CallResult, CallSignal, Verdict
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.lua import keys_of
from engine.limiter.quota import UNLIMITED, token_bucket
from engine.limiter.redis_store import RedisStore
from engine.routing.outage_causes import cause_of
from engine.storage.database import migrate
from models.base import db_now
from models.drift import DriftCheck
from models.embedding import Alias
from models.errors import UpstreamAuthFailed, UpstreamUnavailable
from models.outage import RouteOutage
from tests import fakes
from tests.integration.store import Store

CONFIG = """
[providers.good]
kind = "fake"
[providers.broken]
kind = "fake"
script = [{ when = {}, do = { status = 401 } }]

[models."m/8"]
dimensions = 8
[[models."m/8".routes]]
provider = "good"
model = "fake"
[[models."m/8".routes]]
provider = "broken"
model = "fake"
priority = 1
"""


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:6379", "no scheme"),
        ("localhost", "no scheme"),
        ("kafka://127.0.0.1", "no broker that is known"),
        ("redis://127.0.0.1:1/0", "nothing listens there"),
        ("amqp://127.0.0.1:1//", "nothing listens there"),
        ("redis://127.0.0.1:6379/99999", "no database of that number"),
        ("amqp://guest:wrong@127.0.0.1:5672//", "refuses the user or the password"),
        ("amqp://guest:guest@127.0.0.1:5672/no-such-host", "no such virtual host"),
    ],
)
def test_what_is_wrong_with_a_broker_is_named(url: str, says: str) -> None:
    fault = find_broker_fault(url)
    assert fault is not None
    assert says in fault.cause
    assert fault.advice
    printed = f"{fault.cause} {fault.advice}"
    assert "wrong" not in printed
    assert (urlsplit(url).password or "wrong") not in printed.split()


def test_a_quota_that_the_provider_does_not_give_is_named(tmp_path: Path, redis_url: str) -> None:
    config = tmp_path / "embedmill.toml"
    account = '[providers.small]\nkind = "fake"\ntokens_per_minute = 1_000_000\n'
    config.write_text(
        account + '[models."m/8"]\ndimensions = 8\n[[models."m/8".routes]]\nprovider = "small"\nmodel = "f"\n'
    )
    settings = Settings(data_dir=tmp_path, config=str(config), redis_url=redis_url, namespace="doctor-quotas")
    aliases = config_file.load(settings.config)
    assert quotas(settings, aliases).status == "ok"

    async def refuse() -> None:
        coordinator = BucketCoordinator(
            shared := RedisStore(redis_url, "doctor-quotas:"), "small|f", max_concurrency=8, slot_ttl_s=60.0
        )
        coordinator.set_limits(token_bucket(1_000_000), UNLIMITED)
        assert (await coordinator.acquire(AcquireRequest("a", True, 400_000.0, 60.0))).verdict is Verdict.ALLOW
        await coordinator.settle(CallResult("a", CallSignal.RATE_LIMITED, accepted_tokens=400_000.0, cooldown_s=0.0))
        await shared.close()

    asyncio.run(refuse())
    finding = quotas(settings, aliases)
    assert finding.status == "warn" and "small f to 400,000 of 1,000,000 tokens a minute" in finding.detail
    with redis.Redis.from_url(redis_url) as client:
        client.delete(*[f"doctor-quotas:{key}" for key in keys_of("small|f")])


def test_each_account_is_tried_with_one_call(tmp_path: Path) -> None:
    config = tmp_path / "embedmill.toml"
    config.write_text(CONFIG)
    settings = Settings(data_dir=tmp_path / "data", config=str(config))
    DataDir(settings.data_dir).make()
    migrate(settings.sqlalchemy_url)
    aliases = config_file.load(settings.config)
    assert probe_cost(aliases).startswith("2 calls of ")
    found = {finding.check: finding for finding in accounts(settings, aliases)}
    assert found["account good"].status == "ok"
    assert found["account broken"].status == "fail"
    assert found["account broken"].fix


def test_the_machine_and_the_pepper(tmp_path: Path) -> None:
    assert {finding.check: finding.status for finding in machine(DataDir(tmp_path))}["data directory"] == "ok"
    assert pepper(Settings(data_dir=tmp_path)).status == "warn"
    (tmp_path / "pepper").write_text("short")
    assert pepper(Settings(data_dir=tmp_path)).status == "fail"
    assert pepper(Settings(data_dir=tmp_path, key_pepper="short")).status == "fail"
    assert pepper(Settings(data_dir=tmp_path, key_pepper="x" * 16)).status == "ok"


def serving(*accounts: str) -> dict[str, Alias]:
    """Aliases with a route to the model `m` of each account."""
    return {name: fakes.alias(fakes.route(name)) for name in accounts}


async def test_an_account_that_is_down_is_named_at_no_cost(store: Store) -> None:
    settings = store.runtime.settings
    assert await asyncio.to_thread(outages, settings, serving("bad")) == []
    async with store.runtime.database.write() as connection:
        values = {
            "account": "bad",
            "upstream_model": "m",
            "code": "c",
            "message": "the reply is an HTML page",
            "status": 200,
        }
        row = values | {"advice": "Check that base_url of providers.bad is an embeddings API.", "since": db_now()}
        await connection.execute(insert(RouteOutage).values(**row, next_attempt_at=db_now()))
    [finding] = await asyncio.to_thread(outages, settings, serving("bad", "good"))
    assert finding.status == "fail" and finding.detail.startswith("account bad, model m: down since 2")
    assert "the reply is an HTML page" in finding.detail
    assert "base_url of providers.bad" in finding.fix and "providers test bad" in finding.fix
    # A route that was corrected or removed is probed by nobody, so its outage never ends: it is nobody's trouble.
    assert await asyncio.to_thread(outages, settings, serving("good")) == []
    another_model = dataclasses.replace(fakes.route("bad"), upstream_model="corrected")
    assert await asyncio.to_thread(outages, settings, {"bad": fakes.alias(another_model)}) == []


async def test_a_quarantine_of_a_route_that_is_no_longer_configured_fails_no_doctor(store: Store) -> None:
    watched = dataclasses.replace(
        fakes.route("good"), account=dataclasses.replace(fakes.route("good").account, drift_probe="text")
    )
    row = {"text_digest": "d", "checked_at": db_now(), "quarantined_at": db_now(), "similarity": 0.5}
    space = fakes.alias(watched).space
    aliases = {"good": fakes.alias(watched)}
    for account, status in (("removed", "ok"), ("good", "fail")):
        values = row | {"account": account, "upstream_model": watched.upstream_model, "space": space}
        async with store.runtime.database.write() as connection:
            await connection.execute(insert(DriftCheck).values(values))
        assert (await asyncio.to_thread(check_drift, store.runtime.settings, aliases)).status == status


async def test_an_outage_names_its_command_once(store: Store) -> None:
    for account, error in (("by_class", UpstreamAuthFailed("refused")), ("plain", UpstreamUnavailable("HTTP 503"))):
        cause = cause_of(account, error)
        async with store.runtime.database.write() as connection:
            row: dict[str, Any] = {
                "account": account,
                "upstream_model": "m",
                "code": cause.code,
                "message": cause.message,
            }
            row |= {"status": cause.status, "advice": cause.advice, "since": db_now(), "next_attempt_at": db_now()}
            await connection.execute(insert(RouteOutage).values(**row))
    found = await asyncio.to_thread(outages, store.runtime.settings, serving("by_class", "plain"))
    assert len(found) == 2
    for finding in found:
        assert finding.fix.count("embedmill providers test") == 1 and "at once" not in finding.fix


def test_a_stopped_or_killed_up_is_named_in_place_of_its_broker(tmp_path: Path) -> None:
    place, settings = DataDir(tmp_path), Settings(data_dir=tmp_path)
    for kept in (None, "redis://127.0.0.1:1/0"):  # after a stop, and after a kill
        if kept:
            place.redis_url_file.write_text(kept)
        finding = broker(settings)
        assert finding.status == "warn" and "127.0.0.1:1" not in finding.detail
        assert f"`embedmill up`, which brings one, is not running on {tmp_path}" in finding.detail
        assert "start `embedmill up`" in finding.fix
    with instance_lock(place):
        assert broker(settings).status == "fail"  # it runs, and its Valkey does not
