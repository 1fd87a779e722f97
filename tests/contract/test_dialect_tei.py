"""Text Embeddings Inference, as huggingface_hub 2.4.0 (InferenceClient.feature_extraction) calls it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")
PATHS = ["/tei/tiny", "/tei/tiny/embed", "/tei/tiny/", "/embed?model=tiny"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("given", ["a", ["a", "b"], [[1, 2], [3]], [1, 2]])
async def test_a_bare_array_of_vectors(shared_gateway: Gateway, path: str, given: Any) -> None:
    reply = await shared_gateway.client.post(path, json={"inputs": given})
    expected = (await shared_gateway.embed(given)).json()
    assert reply.status_code == 200, reply.text
    assert reply.json() == [each["embedding"] for each in expected["data"]]
    assert reply.headers["x-compute-tokens"] == str(expected["usage"]["total_tokens"])
    assert int(reply.headers["x-ratelimit-limit-requests"]) > 0


async def test_a_model_with_a_slash(shared_gateway: Gateway) -> None:
    for path in ("/tei/local/wordllama-256", "/tei/local/wordllama-256/embed", "/tei/local%2Fwordllama-256/embed"):
        assert len((await shared_gateway.client.post(path, json={"inputs": "a"})).json()[0]) == 256
    info = (await shared_gateway.client.get("/tei/local/wordllama-256/info")).json()
    assert info["model_id"] == "local/wordllama-256"


async def test_the_fields_of_feature_extraction(shared_gateway: Gateway) -> None:
    body = {
        "inputs": "a",
        "normalize": True,
        "prompt_name": "query",
        "truncate": True,
        "truncation_direction": "Right",
        "dimensions": 4,
        "encoding_format": "float",
        "parameters": {},
        "options": {"wait_for_model": True},
    }
    reply = await shared_gateway.client.post("/tei/tiny", json=body)
    assert reply.status_code == 200 and [len(row) for row in reply.json()] == [4]


async def test_a_url_without_a_model(shared_gateway: Gateway) -> None:
    refused = await shared_gateway.client.post("/embed", json={"inputs": "a"})
    assert refused.status_code == 400 and "/tei/<model>/embed" in refused.json()["error"]
    assert (await shared_gateway.client.post("/embed", json={"inputs": "a", "model": "tiny"})).status_code == 200
    assert (await shared_gateway.client.get("/info")).status_code == 400
    assert (await shared_gateway.client.get("/info?model=tiny")).json()["model_id"] == "tiny"


async def test_what_is_too_long_is_cut_and_counted(shared_gateway: Gateway) -> None:
    sent = {"inputs": ["a", "word " * 100]}
    cut = await shared_gateway.client.post("/tei/fixed", json=sent)
    assert cut.status_code == 200 and cut.headers["x-embedmill-truncated"] == "1"
    refused = await shared_gateway.client.post("/tei/fixed", json=sent | {"truncate": False})
    assert refused.status_code == 400 and "inputs[1]" in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "named"),
    [
        ("/tei/nix", {"inputs": "a"}, 404, "NotFound", "nix"),
        ("/tei/tiny", {}, 400, "Validation", "'inputs'"),
        ("/tei/tiny", {"inputs": []}, 400, "Validation", "'inputs'"),
        ("/tei/tiny", {"inputs": ["a", ""]}, 400, "Validation", "inputs[1]"),
        ("/tei/tiny", {"inputs": ["a", None]}, 400, "Validation", "inputs[1]"),
        ("/tei/tiny", {"inputs": ["a", "poison"]}, 400, "Validation", "inputs[1]"),
        ("/tei/tiny", {"inputs": "a", "normalize": False}, 400, "Validation", "'normalize'"),
        ("/tei/tiny", {"inputs": "a", "truncation_direction": "Left"}, 400, "Validation", "'truncation_direction'"),
        ("/tei/tiny", {"inputs": "a", "prompt_name": "s2p"}, 400, "Validation", "'prompt_name'"),
        ("/tei/tiny", {"inputs": "a", "encoding_format": "base64"}, 400, "Validation", "'encoding_format'"),
        ("/tei/tiny", {"inputs": "a", "parameters": {"normalize": True}}, 400, "Validation", "'parameters'"),
        ("/tei/tiny", {"inputs": "a", "inptus": "b"}, 400, "Validation", "'inptus'"),
        ("/tei/tiny", {"inputs": "broken"}, 502, "Backend", "provider"),
    ],
)
async def test_errors_have_a_type(
    shared_gateway: Gateway, path: str, body: Any, status: int, kind: str, named: str
) -> None:
    reply = await shared_gateway.client.post(path, json=body)
    assert (reply.status_code, set(reply.json())) == (status, {"error", "error_type"}), reply.text
    assert reply.json()["error_type"] == kind and named in reply.json()["error"]


async def test_info(shared_gateway: Gateway) -> None:
    info = (await shared_gateway.client.get("/tei/tiny/info")).json()
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("tiny", 8192, 2048)
    assert info["auto_truncate"] is True and info["version"]
    assert (await shared_gateway.client.get("/tei/nix/info")).status_code == 404
    refused = await shared_gateway.client.get("/tei/tiny/info", headers={"authorization": ""})
    assert refused.status_code == 401 and refused.json()["error_type"] == "Unauthorized"
