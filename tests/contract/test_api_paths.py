"""Paths that clients make of a wrong base URL, and Azure's: served with the same guard, never redirected."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai import AzureOpenAI, OpenAI

from engine.observability.telemetry import REGISTRY
from tests.contract.conftest import Server
from tests.gateway import JOBS, Gateway, error_of

leaving_nothing = pytest.mark.asyncio(loop_scope="session")
OTHER_PATHS = [
    "/embeddings", "/api/v1/embeddings", "/openai/v1/embeddings", "/v1/v1/embeddings", "/openai/embeddings",
    "//v1//embeddings/", "/v1/%65mbeddings", "/%2Fv1/embeddings", "/v1%2Fembeddings", "/api//v1/embeddings/",
]  # fmt: skip
MODEL_PATHS = [
    "/openai/deployments/tiny/embeddings", "/openai/deployments/tiny/embeddings/", "/v1/engines/tiny/embeddings",
    "/engines/tiny/embeddings", "/deployments/tiny/embeddings", "//openai/deployments/tiny/embeddings",
]  # fmt: skip


def counted(route: str, status: str = "200") -> float:
    return REGISTRY.get_sample_value("embedmill_requests_total", {"route": route, "status": status}) or 0.0


async def post(gateway: Gateway, path: str, body: Any, **headers: str) -> httpx.Response:
    return await gateway.client.post(f"http://gateway{path}", json=body, headers=headers, follow_redirects=False)


@leaving_nothing
@pytest.mark.parametrize("path", OTHER_PATHS)
async def test_another_path_of_the_sync_call(shared_gateway: Gateway, path: str) -> None:
    before = counted("/v1/embeddings")
    reply = await post(shared_gateway, path, {"model": "tiny", "input": "a"})
    assert reply.status_code == 200 and reply.json()["model"] == "tiny"
    assert int(reply.headers["x-ratelimit-limit-requests"]) > 0
    assert counted("/v1/embeddings") == before + 1, "the metrics know one name of it"


@leaving_nothing
@pytest.mark.parametrize("path", [*OTHER_PATHS, *MODEL_PATHS])
@pytest.mark.parametrize("key", ["", "Bearer em_wrong"])
async def test_each_path_has_the_same_guard(shared_gateway: Gateway, path: str, key: str) -> None:
    reply = await post(shared_gateway, path, {"model": "tiny", "input": "a"}, authorization=key)
    assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")
    assert int(reply.headers["x-ratelimit-limit-requests"]) > 0


@leaving_nothing
async def test_each_path_needs_the_same_scope(shared_gateway: Gateway) -> None:
    from models.key import Scope

    header = await shared_gateway.another_key(scopes=[Scope.JOBS])
    for path in (*OTHER_PATHS, *MODEL_PATHS):
        reply = await post(shared_gateway, path, {"model": "tiny", "input": "a"}, **header)
        assert (reply.status_code, error_of(reply)["code"]) == (403, "missing_scope"), path


@leaving_nothing
@pytest.mark.parametrize("path", MODEL_PATHS)
async def test_the_model_of_the_path_wins(shared_gateway: Gateway, path: str) -> None:
    for body in ({"input": "a"}, {"input": "a", "model": "fixed"}, {"input": "a", "model": None}):
        reply = await post(shared_gateway, f"{path}?api-version=2024-10-21", body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == "tiny"
    unknown = await post(shared_gateway, path.replace("tiny", "tinny"), {"input": "a", "model": "tiny"})
    assert unknown.status_code == 404 and "tinny" in error_of(unknown)["message"]


@leaving_nothing
async def test_a_model_with_a_slash_in_a_path(shared_gateway: Gateway) -> None:
    for name in ("local/wordllama-256", "local%2Fwordllama-256"):
        reply = await post(shared_gateway, f"/openai/deployments/{name}/embeddings", {"input": "a"})
        assert reply.status_code == 200 and reply.json()["model"] == "local/wordllama-256"


@leaving_nothing
@pytest.mark.parametrize(
    "path",
    ["/models", "/api/v1/models", "/openai/models", "/v1/v1/models/tiny", "/models/tiny", "/embeddings/jobs", "/files",
     "/openai/files", "/openai/batches", "/batches"],
)  # fmt: skip
async def test_other_paths_of_reads(shared_gateway: Gateway, path: str) -> None:
    got = await shared_gateway.client.get(path, follow_redirects=False)
    headed = await shared_gateway.client.head(path)
    assert (got.status_code, headed.status_code, headed.content) == (200, 200, b"")
    assert (await shared_gateway.client.get(path, headers={"authorization": ""})).status_code == 401


@leaving_nothing
@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings/../models", "/healthz/../v1/models", "/healthz/%2e%2e/v1/models", "//evil.example/v1/models",
        "/%2F%2Fevil.example", "/v1/models%00", "/docs/../v1/models", "/healthz;/v1/models", "/v1\\models",
        "/openai/deployments//embeddings", "/openai/deployments/embeddings",
    ],
)  # fmt: skip
async def test_no_path_leads_round_the_guard(shared_gateway: Gateway, path: str) -> None:
    async with httpx.AsyncClient(transport=shared_gateway.transport(), base_url="http://gateway") as stranger:
        for method in ("GET", "POST", "HEAD"):
            request = stranger.build_request(method, "http://gateway/")
            request.url = request.url.copy_with(raw_path=path.encode())
            reply = await stranger.send(request, follow_redirects=False)
            assert reply.status_code in (401, 404, 405), (method, reply.status_code)
            assert "location" not in reply.headers


@leaving_nothing
@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/embedding", "'/v1/embeddings'"),
        ("/embedings", "/v1/embeddings"),
        ("/v1/modles", "'/v1/models'"),
        ("/v1/chat/completions", "POST /v1/embeddings"),
        (f"/{'x' * 3000}", "POST /v1/embeddings"),
    ],
)
async def test_an_unknown_path_names_a_route(shared_gateway: Gateway, path: str, named: str) -> None:
    reply = await shared_gateway.client.post(path, json={})
    assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")
    assert named in error_of(reply)["message"] and path in error_of(reply)["message"]


@leaving_nothing
async def test_what_other_servers_clients_ask_first(shared_gateway: Gateway) -> None:
    for path in ("/health", "/ping", "/version", "/healthz"):
        for client_headers in ({}, {"authorization": "Bearer em_wrong"}):
            async with httpx.AsyncClient(transport=shared_gateway.transport(), base_url="http://gateway") as stranger:
                reply = await stranger.get(path, headers=client_headers)
                headed = await stranger.head(path)
        assert (reply.status_code, headed.status_code, headed.content) == (200, 200, b"")
    assert (await shared_gateway.client.get("/version")).json()["version"]
    assert (await shared_gateway.client.post("/health")).status_code == 405


@leaving_nothing
async def test_a_wrong_method_says_the_right_one(shared_gateway: Gateway) -> None:
    reply = await shared_gateway.client.get("/embeddings")
    assert reply.status_code == 405 and "POST" in error_of(reply)["message"]
    assert (await shared_gateway.client.post(f"/api{JOBS}", json={})).status_code == 400


# --- The official package, unmodified ---


@pytest.mark.parametrize("model", ["tiny", "local/wordllama-256"])
def test_azures_client(server: Server, model: str) -> None:
    with AzureOpenAI(
        azure_endpoint=server.url, api_key=server.key, api_version="2024-10-21", max_retries=0, timeout=30.0
    ) as client:
        reply = client.embeddings.create(model=model, input=["a", "b"])
        assert reply.model == model and len(reply.data) == 2
        assert "tiny" in {each.id for each in client.models.list()}
    with AzureOpenAI(
        azure_endpoint=f"{server.url}/", azure_deployment=model, api_key=server.key, api_version="2024-10-21"
    ) as client:
        assert client.embeddings.create(model="fixed", input="a").model == model
    with (
        AzureOpenAI(azure_endpoint=server.url, api_key="wrong", api_version="1", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="api-key was judged"),
    ):
        client.embeddings.create(model=model, input="a")


@pytest.mark.parametrize("base", ["", "/", "/v1/", "/api/v1", "/openai/v1", "/v1/v1", "//v1"])
def test_the_package_with_a_base_url_that_is_not_quite_ours(server: Server, base: str) -> None:
    with OpenAI(base_url=f"{server.url}{base}", api_key=server.key, max_retries=0, timeout=30.0) as client:
        assert len(client.embeddings.create(model="tiny", input=["a", "b"]).data) == 2
        assert client.models.retrieve("tiny").id == "tiny"
