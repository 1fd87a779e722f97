"""The hint of an outage fits an account whose model runs in this process: there is no address and no status page."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest

from engine.config.config_file import parse
from engine.limiter.registry import LimiterRegistry
from engine.routing.outage_causes import cause_of
from engine.routing.router import Router
from engine.upstream.call import CallContext, Upstream
from models.embedding import Batch, Options, Route
from models.errors import UpstreamError
from tests.fakes import FakeWire

LOCAL: dict[str, Any] = {"providers": {"own": {"kind": "local"}}}
UNFIT = ("base_url", "status page", "out of reach", "server runs", "embeddings API")


def advice_of(route: Route) -> str:
    """What an operator reads of the outage that a call to the route meets."""

    async def call() -> str:
        limiters = LimiterRegistry()
        upstream = Upstream(FakeWire(), [route.account], limiters, max_reply_bytes=1 << 20)
        try:
            with pytest.raises(UpstreamError) as raised:
                batch = Batch(["a text"], [0], 2, route.width, Options())
                await upstream.embed(
                    batch, route, CallContext(Router(limiters).state_of(route), time.monotonic() + 5.0, [])
                )
            assert cause_of(route.account, raised.value).advice == cause_of("own", raised.value).advice
            return cause_of("own", raised.value).advice
        finally:
            await upstream.close()

    return asyncio.run(call())


def local_route(**account: Any) -> Route:
    (route,) = parse(LOCAL, {})["local/wordllama-256"].routes
    return dataclasses.replace(route, account=dataclasses.replace(route.account, **account))


def test_a_local_model_that_is_slow_or_not_there_names_its_own_settings() -> None:
    slow = advice_of(local_route(timeout_s=1e-6))
    unknown = advice_of(dataclasses.replace(local_route(), upstream_model="minilm"))
    assert "timeout_s of providers.own" in slow and "model in the route to providers.own" in unknown
    wrong_width = advice_of(dataclasses.replace(local_route(), width=512))
    assert not [word for word in UNFIT if word in slow + unknown + wrong_width]


@pytest.mark.parametrize(
    "fault", [{"status": 404}, {"status": 405}, {"status": 500}, {"reply": "html"}, {"fault": "reset"}]
)
def test_a_fake_that_plays_a_fault_names_its_script(fault: dict[str, Any]) -> None:
    own = {"kind": "fake", "script": [{"do": fault}]}
    (route,) = parse({"providers": {"own": own}}, {})["fake/embedding-1536"].routes
    advice = advice_of(route)
    assert "script of providers.own" in advice and not [word for word in UNFIT if word in advice]
