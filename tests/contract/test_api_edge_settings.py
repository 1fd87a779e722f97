"""CORS, the path of a proxy, and whose address a log line has: by settings, and off without them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from engine.config.settings import Settings
from engine.observability.telemetry import JsonFormatter
from models.errors import ConfigError
from tests.gateway import JOBS, Gateway, close_gateway, error_of, open_gateway

PAGE = "https://app.example"
ASKED = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


@pytest.fixture
async def open_to_a_page(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, cors_origins=f"{PAGE}, http://localhost:3000")
    yield gateway
    await close_gateway(gateway)


@pytest.fixture
async def open_to_all(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, cors_origins="*")
    yield gateway
    await close_gateway(gateway)


def cors_headers(reply: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


async def preflight(gateway: Gateway, origin: str, path: str = "/v1/embeddings") -> httpx.Response:
    async with httpx.AsyncClient(transport=gateway.transport(), base_url="http://gateway") as page:
        return await page.options(path, headers={"origin": origin, **ASKED})


async def test_it_is_off_by_default(gateway: Gateway) -> None:
    reply = await preflight(gateway, PAGE)
    assert reply.status_code == 405 and cors_headers(reply) == {}
    assert cors_headers(await gateway.client.get("/v1/models", headers={"origin": PAGE})) == {}


async def test_a_page_of_the_setting_may_call(open_to_a_page: Gateway) -> None:
    for path in ("/v1/embeddings", "/embeddings", JOBS, "/v1/nothing"):
        reply = await preflight(open_to_a_page, PAGE, path)
        assert (reply.status_code, reply.content) == (204, b"")
        assert reply.headers["access-control-allow-origin"] == PAGE and "Origin" in reply.headers["vary"]
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert "authorization" in reply.headers["access-control-allow-headers"]
        assert reply.headers["x-request-id"].startswith("req_")
    body = {"model": "tiny", "input": "a"}
    for headers, status in (({}, 200), ({"authorization": "Bearer em_wrong"}, 401)):
        reply = await open_to_a_page.client.post("/v1/embeddings", json=body, headers={"origin": PAGE, **headers})
        assert reply.status_code == status and reply.headers["access-control-allow-origin"] == PAGE
        exposed = reply.headers["access-control-expose-headers"]
        ours = [name for name in reply.headers if name.startswith("x-") or name in ("retry-after", "location")]
        assert ours and all(name in exposed for name in ours)


async def test_a_page_elsewhere_may_not(open_to_a_page: Gateway) -> None:
    for origin in ("https://evil.example", "null", f"{PAGE}.evil.example", "http://app.example", f"{PAGE}:8443"):
        refused = await preflight(open_to_a_page, origin)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "cors_refused")
        assert "access-control-allow-origin" not in refused.headers
        reply = await open_to_a_page.client.get("/v1/models", headers={"origin": origin})
        assert reply.status_code == 200 and "access-control-allow-origin" not in reply.headers


async def test_a_star_never_comes_with_credentials(open_to_all: Gateway) -> None:
    plain = await open_to_all.client.get("/v1/models", headers={"origin": PAGE})
    assert plain.headers["access-control-allow-origin"] == "*"
    for headers in ({}, {"cookie": "a=b"}):
        for reply in (
            await preflight(open_to_all, PAGE),
            await open_to_all.client.get("/v1/models", headers={"origin": PAGE, **headers}),
        ):
            assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize("origins", ["app.example", "https://app.example/", "ftp://a", "https://", "*.example"])
def test_what_is_no_origin(origins: str) -> None:
    with pytest.raises(ConfigError, match="CORS_ORIGINS"):
        Settings.from_environment({"EMBEDMILL_CORS_ORIGINS": origins})


# --- Below a path ---


async def test_below_the_path_of_a_proxy(data_dir: Path) -> None:
    gateway = await open_gateway(data_dir, root_path="/embed")
    body = {"model": "tiny", "input": ["a"]}
    for prefix in ("/embed", ""):
        assert (await gateway.client.post(f"{prefix}/v1/embeddings", json=body)).status_code == 200
        assert (await gateway.client.post(f"{prefix}/embeddings", json=body)).status_code == 200
        job = await gateway.client.post(f"{prefix}{JOBS}", json=body)
        assert job.headers["location"] == f"/embed{JOBS}/{job.json()['id']}"
        assert (await gateway.client.get(job.headers["location"])).status_code == 200
        assert (await gateway.client.get(f"{prefix}/healthz", headers={"authorization": ""})).status_code == 200
        page = (await gateway.client.get(f"{prefix}/docs")).text
        assert 'href="/embed/openapi.json"' in page
        document = (await gateway.client.get(f"{prefix}/openapi.json")).json()
        assert document["servers"] == [{"url": "/embed"}]
    reply = await gateway.client.get("/embed/v1/models", headers={"authorization": ""})
    assert reply.status_code == 401
    await close_gateway(gateway)


@pytest.mark.parametrize("root", ["embed", "/embed/", "/", "//evil.example", "/a b", "/a?b", "https://x"])
def test_what_is_no_base_path(root: str) -> None:
    with pytest.raises(ConfigError, match="ROOT_PATH"):
        Settings.from_environment({"EMBEDMILL_ROOT_PATH": root})


# --- Whose request it is ---


@pytest.mark.parametrize(("trusted", "client"), [("127.0.0.0/8", "198.51.100.7"), ("10.0.0.0/8", "127.0.0.1")])
async def test_a_log_line_has_the_callers_address(
    data_dir: Path, caplog: pytest.LogCaptureFixture, trusted: str, client: str
) -> None:
    gateway = await open_gateway(data_dir, trusted_proxies=trusted)  # the transport says it is 127.0.0.1
    caplog.set_level(logging.INFO)
    await gateway.client.get("/v1/nothing", headers={"x-forwarded-for": "1.2.3.4, 198.51.100.7"})
    line = next(each for each in caplog.records if each.name == "embedmill.requests")
    assert json.loads(JsonFormatter("api").format(line))["client"] == client
    await close_gateway(gateway)
