"""While another route serves, sync calls never wait for the health probe of one that is down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from engine.ledger.call_cost import CONTROL_TEXT
from models.embedding import RouteKey
from models.errors import UpstreamTimeout
from models.usage import OPERATOR_PROJECT, UsageRecord
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake import fake_tokens, fake_vectors
from tests.fakes import FakeWire, fake
from tests.gateway import WIDTH, Gateway, close_gateway, open_gateway
from tests.waiting import until

CONFIG = """
[providers.first]
kind = "openai"
base_url = "http://first/v1"
api_key = "env:PATH"

[providers.second]
kind = "openai"
base_url = "http://second/v1"
api_key = "env:PATH"

[models.m]
dimensions = 16
verify_spaces = false
routes = [{ provider = "first", model = "up" }, { provider = "second", model = "up", priority = 1 }]
"""
FIRST: RouteKey = ("first", "up")


class BlackHoleWire(FakeWire):
    """While `is_away`, no connection to the first host comes about, and nothing says so before `gives_up` is set."""

    def __init__(self) -> None:
        super().__init__(first=fake(), second=fake())
        self.is_away = False
        self.gives_up = asyncio.Event()

    async def send(self, request: UpstreamRequest, *, timeout_s: float, max_reply_bytes: int) -> UpstreamReply:
        if self.is_away and "//first/" in request.url:
            self.sent.append(request)
            await self.gives_up.wait()
            raise UpstreamTimeout("the upstream could not be connected to in time", sent=False)
        return await super().send(request, timeout_s=timeout_s, max_reply_bytes=max_reply_bytes)

    @property
    def calls_to_first(self) -> int:
        return self.hosts_called.count("first")


@pytest.fixture
async def wire() -> BlackHoleWire:
    return BlackHoleWire()


@pytest.fixture
async def gateway(data_dir: Path, wire: BlackHoleWire) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, config=CONFIG, wire=wire)
    yield gateway
    await close_gateway(gateway)


async def call(gateway: Gateway, text: str) -> None:
    answer = await gateway.embed(text, model="m", encoding_format="float")
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["embedding"] == pytest.approx(fake_vectors([text], WIDTH, "up")[0].tolist())


async def test_a_probe_without_an_answer_keeps_no_caller(gateway: Gateway, wire: BlackHoleWire) -> None:
    wire.is_away = True
    wire.gives_up.set()
    await call(gateway, "the first one waits for one connection, once")
    assert wire.calls_to_first == 1 and gateway.runtime.router.outages.active[FIRST].failures == 0

    wire.gives_up.clear()

    async def probe_is_under_way() -> bool:
        await call(gateway, "not for this one")
        return wire.calls_to_first == 2

    await until(probe_is_under_way, 20, what="a health probe")
    for number in range(20):
        await call(gateway, f"while it lasts {number}")
    assert wire.calls_to_first == 2

    wire.gives_up.set()
    await until(lambda: gateway.runtime.router.outages.active[FIRST].failures == 1, 20, what="the end of the probe")
    wire.is_away = False

    async def serves_again() -> bool:
        await call(gateway, "and back")
        return FIRST not in gateway.runtime.router.outages.active

    await until(serves_again, 20, what="the end of the outage")
    before = wire.calls_to_first
    await call(gateway, "on the first route")
    assert wire.calls_to_first == before + 1
    await gateway.runtime.usage.flush()
    async with gateway.runtime.database.read() as connection:
        paid = await connection.execute(
            select(UsageRecord.provider, UsageRecord.code, UsageRecord.prompt_tokens).where(
                UsageRecord.project == OPERATOR_PROJECT
            )
        )
    # The probe that was answered, with a text of ours.
    [(provider, code, tokens)] = paid.all()
    assert (provider, code, tokens) == ("first", "control_call", fake_tokens(CONTROL_TEXT))
