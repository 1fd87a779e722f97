"""A hedged sync call over HTTP: who served it, and what the ledger says of the call that was cut off."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from sqlalchemy import select

from engine.observability.telemetry import REGISTRY
from models.usage import UsageRecord
from tests.fakes import FakeWire, fake
from tests.gateway import close_gateway, open_gateway

CONFIG = """
[providers.first]
kind = "openai"
base_url = "http://first/v1"
[providers.second]
kind = "openai"
base_url = "http://second/v1"
[models.tiny]
dimensions = 16
hedge = true
verify_spaces = false
input_usd_per_million_tokens = "0.02"
routes = [{ provider = "first", model = "m" }, { provider = "second", model = "m", priority = 1 }]
"""


def won() -> float:
    labels = {"provider": "second", "model": "m", "outcome": "won"}
    return REGISTRY.get_sample_value("embedmill_hedged_calls_total", labels) or 0.0


async def test_a_slow_call_is_served_by_the_second_route_and_both_are_billed(data_dir: Path) -> None:
    wire = FakeWire(first=fake(), second=fake())
    gateway = await open_gateway(data_dir, config=CONFIG, wire=wire)
    for _ in range(20):
        assert (await gateway.embed(["a text"])).headers["x-embedmill-provider"] == "first"
    before = won()
    wire.hosts["first"] = fake({"do": {"fault": "hang"}})
    reply = await gateway.embed(["a text"])
    assert reply.status_code == 200 and reply.headers["x-embedmill-provider"] == "second"
    routing = reply.json()["providerMetadata"]["gateway"]["routing"]
    assert routing["finalProvider"] == "second"
    assert {(each["provider"], each["success"]) for each in routing["attempts"]} == {("first", False), ("second", True)}
    await gateway.runtime.usage.flush()
    async with gateway.runtime.database.read() as connection:
        rows = (await connection.execute(select(*UsageRecord.__table__.columns))).all()
    [lost] = [row for row in rows if row.kind != "delivered"]
    assert (lost.provider, lost.kind, lost.code, lost.project) == ("first", "ambiguous", "cut_off", "default")
    assert lost.cost_usd > 0 and lost.usd_per_million_tokens == Decimal("0.02")
    assert [row.provider for row in rows if row.kind == "delivered"].count("second") == 1
    assert won() - before == 1
    await close_gateway(gateway)
