"""GET /v1/models/{id}/endpoints: each route with its price, state, latency, success rate and quota."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from api.http.model_schemas import EndpointList
from models.key import Scope
from providers.base import UpstreamReply
from tests.fakes import FakeWire, fake
from tests.gateway import Gateway, close_gateway, error_of, open_gateway

CONFIG = """
[providers.first]
kind = "openai"
base_url = "http://first/v1"
requests_per_minute = 500
[providers.second]
kind = "mistral"
base_url = "http://second/v1"
api_key = "env:HOME"

[models."team/tiny"]
dimensions = 16
input_usd_per_million_tokens = "0.02"
verify_spaces = false
[[models."team/tiny".routes]]
provider = "first"
model = "up"
[[models."team/tiny".routes]]
provider = "second"
model = "other"
priority = 1
weight = 3
input_usd_per_million_tokens = "0.5"

[models."team/tiny/endpoints"]
dimensions = 16
routes = [{ provider = "first", model = "up" }]
[models.plain]
dimensions = 16
routes = [{ provider = "first", model = "up" }]
"""
ONLY_TINY = CONFIG.split('[models."team/tiny/endpoints"]')[0]
PATH = "/v1/models/team/tiny"


@pytest.fixture
async def wire() -> FakeWire:
    return FakeWire(first=fake(), second=fake())


@pytest.fixture
async def routed(data_dir: Path, wire: FakeWire) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, config=ONLY_TINY, wire=wire)
    yield gateway
    await close_gateway(gateway)


async def endpoints(gateway: Gateway) -> list[dict[str, Any]]:
    reply = await gateway.client.get(f"{PATH}/endpoints")
    assert reply.status_code == 200, reply.text
    msgspec.json.decode(reply.content, type=EndpointList)  # it is what the document says
    data: list[dict[str, Any]] = reply.json()["data"]
    return data


async def test_what_is_known_before_any_call(routed: Gateway) -> None:
    reply = (await routed.client.get(f"{PATH}/endpoints")).json()
    assert (reply["object"], reply["model"], reply["space"]) == ("list", "team/tiny", "team/tiny")
    first, second = reply["data"]
    assert first == {
        "provider": "first",
        "kind": "openai",
        "upstream_model": "up",
        "priority": 0,
        "weight": 1,
        "pricing": {"input": "0.00000002"},
        "status": "up",
        "breaker": {"state": "closed", "reason": None, "next_attempt_at": None},
        "latency_ms": {"p50": None, "p95": None, "scope": "process"},
        "success_rate": {"15m": None, "1h": None, "1d": None, "scope": "process"},
        "quota": {
            "requests_per_minute": {"limit": 500, "remaining": None},
            "tokens_per_minute": {"limit": None, "remaining": None},
        },
    }
    described = [second[name] for name in ("provider", "kind", "upstream_model", "priority", "weight", "pricing")]
    assert described == ["second", "mistral", "other", 1, 3, {"input": "0.0000005"}]


async def test_calls_show_in_latency_and_success_rate(routed: Gateway, wire: FakeWire) -> None:
    wire.hosts["first"] = fake({"times": 1, "do": {"status": 500}})
    for _ in range(3):
        assert (await routed.embed(["text"], model="team/tiny")).status_code == 200
    first, second = await endpoints(routed)
    assert 0 < first["latency_ms"]["p50"] <= first["latency_ms"]["p95"] < 10_000
    # Four calls: one failed, and was made again.
    assert first["success_rate"] == {"15m": 0.75, "1h": 0.75, "1d": 0.75, "scope": "process"}
    assert second["success_rate"]["1d"] is None and second["latency_ms"]["p50"] is None


async def test_an_input_that_is_refused_is_no_failure_of_the_route(routed: Gateway, wire: FakeWire) -> None:
    wire.hosts["first"] = fake({"when": {"contains": "poison"}, "do": {"status": 400}})
    assert (await routed.embed(["poison"], model="team/tiny")).status_code == 400
    assert (await routed.embed(["text"], model="team/tiny")).status_code == 200
    assert (await endpoints(routed))[0]["success_rate"]["15m"] == 1.0


async def test_a_route_that_is_down_has_an_open_breaker(routed: Gateway, wire: FakeWire) -> None:
    wire.hosts["first"] = fake({"do": {"status": 401}})
    assert (await routed.embed(["text"], model="team/tiny")).status_code == 200  # by the second
    first, second = await endpoints(routed)
    assert (first["status"], first["breaker"]["state"]) == ("down", "open")
    assert first["breaker"]["reason"] and "http" not in first["breaker"]["reason"]
    assert abs(first["breaker"]["next_attempt_at"] - time.time()) < 10
    assert first["success_rate"]["1h"] == 0.0
    assert (second["status"], second["breaker"]["state"]) == ("up", "closed")


async def test_what_the_provider_says_is_left_of_its_quota(routed: Gateway, wire: FakeWire) -> None:
    def stating(reply: UpstreamReply) -> UpstreamReply:
        headers = {
            "x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": f"{left}",
            "x-ratelimit-limit-tokens": "9000", "x-ratelimit-remaining-tokens": "8000",
        }  # fmt: skip
        return dataclasses.replace(reply, headers={**reply.headers, **headers})

    wire.edit = stating
    for left in (99, 98):  # noqa: B007  # read by `stating`
        assert (await routed.embed(["text"], model="team/tiny")).status_code == 200
    assert (await endpoints(routed))[0]["quota"] == {
        "requests_per_minute": {"limit": 100, "remaining": 98},
        "tokens_per_minute": {"limit": 9000, "remaining": 8000},
    }


async def test_a_quarantined_route_says_so(routed: Gateway) -> None:
    routed.runtime.router.quarantined = frozenset({("first", "up", "team/tiny")})
    first, second = await endpoints(routed)
    assert (first["status"], first["breaker"]["state"], first["breaker"]["next_attempt_at"]) == (
        "quarantined",
        "open",
        None,
    )
    assert "vectors have changed" in first["breaker"]["reason"] and second["status"] == "up"


async def test_a_route_that_is_not_compared_yet_says_so(data_dir: Path, wire: FakeWire) -> None:
    wire.hosts["second"] = fake({"do": {"status": 500}})  # so that it stays so
    gateway = await open_gateway(data_dir, config=ONLY_TINY.replace("verify_spaces = false\n", ""), wire=wire)
    first, second = await endpoints(gateway)
    assert (first["status"], second["status"], second["breaker"]["state"]) == ("up", "quarantined", "open")
    assert second["breaker"]["reason"] == "it is not verified yet to give the vectors of account first"
    await close_gateway(gateway)


@pytest.mark.parametrize(
    ("header", "status"), [({"authorization": ""}, 401), ({"authorization": "Bearer em_x"}, 401), (None, 403)]
)
async def test_it_needs_a_key_for_embeddings(routed: Gateway, header: dict[str, str] | None, status: int) -> None:
    header = header if header is not None else await routed.another_key(scopes=[Scope.JOBS])
    async with httpx.AsyncClient(transport=routed.transport(), base_url="http://gateway", headers=header) as other:
        assert (await other.get(f"{PATH}/endpoints")).status_code == status


@pytest.mark.parametrize("name", ["no/such", "team", "endpoints", "team/tiny/endpoints"])
async def test_an_unknown_model_is_an_error(routed: Gateway, name: str) -> None:
    missing = await routed.client.get(f"/v1/models/{name}/endpoints")
    assert missing.status_code == 404 and error_of(missing)["code"] == "model_not_found"


async def test_a_model_whose_name_ends_so_keeps_its_address(data_dir: Path, wire: FakeWire) -> None:
    gateway = await open_gateway(data_dir, config=CONFIG, wire=wire)
    one = (await gateway.client.get(f"{PATH}/endpoints")).json()
    assert (one["object"], one["id"]) == ("model", "team/tiny/endpoints")
    its_own = (await gateway.client.get(f"{PATH}/endpoints/endpoints")).json()
    assert its_own["model"] == "team/tiny/endpoints" and len(its_own["data"]) == 1
    assert (await gateway.client.get("/v1/models/plain/endpoints")).json()["model"] == "plain"
    await close_gateway(gateway)
