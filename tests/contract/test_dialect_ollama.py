"""Ollama's own calls, as ollama 0.6.3 sends them and reads replies."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("given", ["a", ["a"], ["a", "b", "c"]])
async def test_embed(shared_gateway: Gateway, given: Any) -> None:
    reply = await shared_gateway.client.post("/api/embed", json={"model": "tiny", "input": given})
    expected = (await shared_gateway.embed(given)).json()
    body = reply.json()
    assert reply.status_code == 200 and body["model"] == "tiny" and body["total_duration"] > 0
    assert body["embeddings"] == [each["embedding"] for each in expected["data"]]
    assert body["prompt_eval_count"] == expected["usage"]["total_tokens"] and "warnings" not in body
    assert int(reply.headers["x-ratelimit-limit-requests"]) > 0


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "local/wordllama-256", "local/wordllama-256:latest"])
async def test_the_default_variant_of_a_model_is_the_model(shared_gateway: Gateway, name: str) -> None:
    for path, body in (("/api/embed", {"input": ["a"]}), ("/api/embeddings", {"prompt": "a"})):
        assert (await shared_gateway.client.post(path, json={"model": name, **body})).status_code == 200


async def test_the_older_call_is_for_one_text(shared_gateway: Gateway) -> None:
    reply = await shared_gateway.client.post("/api/embeddings", json={"model": "tiny", "prompt": "a"})
    newer = await shared_gateway.client.post("/api/embed", json={"model": "tiny", "input": "a"})
    assert reply.json() == {"embedding": newer.json()["embeddings"][0]}
    for prompt in (["a"], 5, ""):
        refused = await shared_gateway.client.post("/api/embeddings", json={"model": "tiny", "prompt": prompt})
        assert refused.status_code == 400 and "'prompt'" in refused.json()["error"]


async def test_options_are_left_out_and_named(shared_gateway: Gateway) -> None:
    sent = {"model": "tiny", "input": "a", "options": {"num_ctx": 128}, "keep_alive": "5m", "dimensions": 4}
    body = (await shared_gateway.client.post("/api/embed", json=sent)).json()
    assert [len(row) for row in body["embeddings"]] == [4]
    assert {each["feature"] for each in body["warnings"]} == {"options", "keep_alive"}
    for value in (300, 1.5, "1h", None):
        sent = {"model": "tiny", "input": "a", "options": {}, "keep_alive": value}
        assert (await shared_gateway.client.post("/api/embed", json=sent)).status_code == 200


async def test_what_is_too_long_is_cut_unless_the_call_forbids_it(shared_gateway: Gateway) -> None:
    sent = {"model": "fixed", "input": ["a", "word " * 100]}
    cut = (await shared_gateway.client.post("/api/embed", json=sent)).json()
    assert len(cut["embeddings"]) == 2 and "(1)" in cut["warnings"][0]["details"]
    refused = await shared_gateway.client.post("/api/embed", json=sent | {"truncate": False})
    assert refused.status_code == 400 and "input[1]" in refused.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"model": "nix", "input": "a"}, 404, "nix"),
        ({"model": "nix:latest", "input": "a"}, 404, "nix"),
        ({"model": "tiny"}, 400, "'input'"),
        ({"input": "a"}, 400, "'model'"),
        ({"model": "tiny", "input": ""}, 400, "'input'"),
        ({"model": "tiny", "input": []}, 400, "'input'"),
        ({"model": "tiny", "input": ["a", 7]}, 400, "input[1]"),
        ({"model": "tiny", "input": ["a", "poison"]}, 400, "input[1]"),
        ({"model": "tiny", "input": "a", "stream": True}, 400, "'stream'"),
        ({"model": "tiny", "input": "broken"}, 502, "provider"),
    ],
)
async def test_errors_are_one_text(shared_gateway: Gateway, body: Any, status: int, named: str) -> None:
    reply = await shared_gateway.client.post("/api/embed", json=body)
    assert reply.status_code == status and list(reply.json()) == ["error"], reply.text
    assert named in reply.json()["error"]


async def test_models_and_version_need_the_key(shared_gateway: Gateway) -> None:
    models = (await shared_gateway.client.get("/api/tags")).json()["models"]
    assert {"tiny", "local/wordllama-256"} <= {each["model"] for each in models}
    assert all(datetime.fromisoformat(each["modified_at"]).tzinfo for each in models)
    assert (await shared_gateway.client.get("/api/version")).json()["version"]
    for path in ("/api/tags", "/api/version"):
        refused = await shared_gateway.client.get(path, headers={"authorization": ""})
        assert refused.status_code == 401 and isinstance(refused.json()["error"], str)


async def test_the_openai_paths_beside_it_are_still_ours(shared_gateway: Gateway) -> None:
    reply = await shared_gateway.client.post("/api/v1/embeddings", json={"model": "tiny", "input": "a"})
    assert reply.status_code == 200 and reply.json()["object"] == "list"
