"""Cohere's embed calls, as cohere 7.3.1 (ClientV2 and Client) sends them and reads replies."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from tests.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")
V2 = {"model": "tiny", "input_type": "search_document", "embedding_types": ["float"]}


async def test_version_2(shared_gateway: Gateway) -> None:
    reply = await shared_gateway.client.post("/v2/embed", json=V2 | {"texts": ["a", "b é"]})
    expected = (await shared_gateway.embed(["a", "b é"], input_type="document")).json()
    body = reply.json()
    assert reply.status_code == 200 and set(body) == {"id", "embeddings", "texts", "meta", "response_type"}
    assert body["embeddings"] == {"float": [each["embedding"] for each in expected["data"]]}
    assert body["texts"] == ["a", "b é"] and body["response_type"] == "embeddings_by_type" and body["id"]
    assert body["meta"]["api_version"] == {"version": "2"}
    assert body["meta"]["billed_units"] == {"input_tokens": expected["usage"]["total_tokens"]}
    assert int(reply.headers["x-ratelimit-limit-requests"]) > 0 and reply.headers["x-embedmill-provider"] == "fake"


async def test_both_types_are_the_same_vectors(shared_gateway: Gateway) -> None:
    body = V2 | {"texts": ["a", "b"], "embedding_types": ["base64", "float", "base64"]}
    vectors = (await shared_gateway.client.post("/v2/embed", json=body)).json()["embeddings"]
    assert list(vectors) == ["base64", "float"]
    for text, numbers in zip(vectors["base64"], vectors["float"], strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f4"), np.array(numbers, dtype=np.float32))


async def test_version_1_gives_vectors_without_a_type(shared_gateway: Gateway) -> None:
    sent = {"texts": ["a", "b"], "model": "tiny", "input_type": "search_query"}
    bare = (await shared_gateway.client.post("/v1/embed", json=sent)).json()
    assert bare["response_type"] == "embeddings_floats" and len(bare["embeddings"]) == 2 and bare["texts"] == ["a", "b"]
    typed = (await shared_gateway.client.post("/v1/embed", json=sent | {"embedding_types": ["float"]})).json()
    assert typed["response_type"] == "embeddings_by_type" and typed["embeddings"]["float"] == bare["embeddings"]
    assert typed["meta"]["api_version"] == {"version": "1"}


async def test_inputs_with_one_text_each(shared_gateway: Gateway) -> None:
    items = [{"content": [{"type": "text", "text": text}]} for text in ("a", "b")]
    by_inputs = await shared_gateway.client.post("/v2/embed", json=V2 | {"inputs": items})
    by_texts = await shared_gateway.client.post("/v2/embed", json=V2 | {"texts": ["a", "b"], "inputs": None})
    assert by_inputs.json()["embeddings"] == by_texts.json()["embeddings"]
    two_parts = [items[0], {"content": [*items[0]["content"], *items[1]["content"]]}]
    refused = await shared_gateway.client.post("/v2/embed", json=V2 | {"inputs": two_parts})
    assert refused.status_code == 400 and "inputs[1].content" in refused.json()["message"]
    image = [{"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]
    assert (await shared_gateway.client.post("/v2/embed", json=V2 | {"inputs": image})).status_code == 400


async def test_what_is_too_long_is_cut_as_cohere_does_and_said(shared_gateway: Gateway) -> None:
    body = {"model": "fixed", "texts": ["a", "word " * 100]}
    cut = await shared_gateway.client.post("/v2/embed", json=body)
    assert cut.status_code == 200 and any("(1)" in warning for warning in cut.json()["meta"]["warnings"])
    whole = await shared_gateway.client.post("/v2/embed", json=body | {"truncate": "NONE"})
    assert whole.status_code == 400 and "texts[1]" in whole.json()["message"]


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"texts": ["a"], "truncate": "START"}, 400, "'truncate': 'START'"),
        ({"texts": ["a"], "embedding_types": ["float", "int8"]}, 400, "'int8' is not supported"),
        ({"texts": ["a"], "embedding_types": ["ubinary"]}, 400, "float, base64"),
        ({"texts": ["a"], "input_type": "image"}, 400, "'input_type': 'image'"),
        ({"texts": ["a"], "output_dimension": 99}, 400, "dimension"),
        ({"texts": ["a"], "max_tokens": 5}, 400, "'max_tokens'"),
        ({"images": ["data:image/png;base64,AA=="]}, 400, "'images'"),
        ({}, 400, "'texts'"),
        ({"texts": ["a"], "inputs": [{"content": [{"type": "text", "text": "b"}]}]}, 400, "'texts'"),
        ({"texts": "a"}, 400, "'texts'"),
        ({"texts": []}, 400, "'texts'"),
        ({"texts": ["a", ""]}, 400, "texts[1]"),
        ({"texts": ["a", None]}, 400, "texts[1]"),
        ({"texts": ["a", "poison"]}, 400, "texts[1]"),
        ({"texts": ["a"], "textes": 1}, 400, "'textes'"),
        ({"texts": ["a"], "model": "nix"}, 404, "`nix`"),
        ({"texts": ["broken"]}, 502, "provider"),
    ],
)
async def test_errors_are_a_message(shared_gateway: Gateway, fields: Any, status: int, named: str) -> None:
    reply = await shared_gateway.client.post("/v2/embed", json=V2 | fields)
    assert reply.status_code == status and set(reply.json()) == {"message"}, reply.text
    assert named in reply.json()["message"]


async def test_a_wrong_key(shared_gateway: Gateway) -> None:
    for path in ("/v1/embed", "/v2/embed"):
        reply = await shared_gateway.client.post(path, json=V2, headers={"authorization": "Bearer em_wrong"})
        assert reply.status_code == 401 and set(reply.json()) == {"message"}


async def test_width_priority_and_case(shared_gateway: Gateway) -> None:
    body = V2 | {"texts": ["a"], "output_dimension": 4, "truncate": "end", "priority": 3, "max_tokens": None}
    reply = (await shared_gateway.client.post("/v2/embed", json=body)).json()
    assert len(reply["embeddings"]["float"][0]) == 4
    assert any(warning.startswith("priority") for warning in reply["meta"]["warnings"])


@pytest.mark.parametrize("field", ["texts", "inputs"])
async def test_a_large_call_keeps_its_order(shared_gateway: Gateway, field: str) -> None:
    texts = [f"text {index} {'x' * 60}" for index in range(2048)]
    items = [{"content": [{"type": "text", "text": text}]} for text in texts]
    sent: list[Any] = [*texts] if field == "texts" else [*items]
    large = (await shared_gateway.client.post("/v2/embed", json=V2 | {field: sent})).json()["embeddings"]["float"]
    small = (await shared_gateway.client.post("/v2/embed", json=V2 | {"texts": texts[2000:]})).json()["embeddings"]
    assert len(large) == 2048 and large[2000:] == small["float"]
    over = await shared_gateway.client.post("/v2/embed", json=V2 | {field: [*sent, sent[0]]})
    assert over.status_code == 400 and f"'{field}'" in over.json()["message"] and "2048" in over.json()["message"]
    bad = await shared_gateway.client.post("/v2/embed", json=V2 | {field: [*sent[:2000], 7]})
    assert bad.status_code == 400 and f"{field}[2000]" in bad.json()["message"]
