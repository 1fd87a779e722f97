"""Google's Gemini API, as google-genai 3.6.1 calls it: the batch call, also for one text."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")
VERSIONS = ["v1", "v1beta"]


def content(*texts: str) -> dict[str, Any]:
    return {"parts": [{"text": text} for text in texts], "role": "user"}


def batch(*texts: str, model: str = "tiny", **fields: Any) -> dict[str, Any]:
    return {"requests": [{"model": f"models/{model}", "content": content(text), **fields} for text in texts]}


async def post(gateway: Gateway, body: Any, *, model: str = "tiny", version: str = "v1") -> httpx.Response:
    return await gateway.client.post(f"/{version}/models/{model}:batchEmbedContents", json=body)


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_batch_call(shared_gateway: Gateway, version: str) -> None:
    reply = await post(shared_gateway, batch("a", "b"), version=version)
    expected = (await shared_gateway.embed(["a", "b"])).json()
    body = reply.json()
    assert reply.status_code == 200, reply.text
    assert body["embeddings"] == [{"values": each["embedding"]} for each in expected["data"]]
    assert body["usageMetadata"]["promptTokenCount"] == expected["usage"]["total_tokens"] and "warnings" not in body
    assert int(reply.headers["x-ratelimit-limit-requests"]) > 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_call_of_one_text(shared_gateway: Gateway, version: str) -> None:
    for body in ({"content": content("a")}, {"model": "models/tiny", "content": {"parts": [{"text": "a"}]}}):
        reply = await shared_gateway.client.post(f"/{version}/models/tiny:embedContent", json=body)
        expected = (await shared_gateway.embed("a")).json()
        assert reply.json()["embedding"] == {"values": expected["data"][0]["embedding"]}


async def test_a_model_with_a_slash(shared_gateway: Gateway) -> None:
    name = "local/wordllama-256"
    reply = await post(shared_gateway, batch("a", model=name), model=name)
    assert len(reply.json()["embeddings"][0]["values"]) == 256


async def test_options_in_both_spellings(shared_gateway: Gateway) -> None:
    spellings: list[dict[str, Any]] = [
        {"taskType": "RETRIEVAL_QUERY", "outputDimensionality": 4},
        {"task_type": "RETRIEVAL_QUERY", "output_dimensionality": 4},
        {"taskType": "TASK_TYPE_UNSPECIFIED", "outputDimensionality": 4, "title": None},
    ]
    for fields in spellings:
        reply = await post(shared_gateway, batch("a", "b", **fields))
        assert [len(each["values"]) for each in reply.json()["embeddings"]] == [4, 4], reply.text


async def test_the_key_is_read_where_google_reads_it(shared_gateway: Gateway) -> None:
    key, path = shared_gateway.key, "/v1beta/models/tiny:batchEmbedContents"
    async with httpx.AsyncClient(transport=shared_gateway.transport(), base_url="http://gateway") as client:
        for headers, query in (
            ({"x-goog-api-key": key}, ""),
            ({}, f"?key={key}"),
            ({"x-goog-api-key": ""}, f"?key={key}"),
        ):
            assert (await client.post(path + query, json=batch("a"), headers=headers)).status_code == 200
        for headers, query in (({"x-goog-api-key": "em_wrong"}, ""), ({}, "?key=em_wrong"), ({}, ""), ({}, "?key=")):
            reply = await client.post(path + query, json=batch("a"), headers=headers)
            assert (reply.status_code, reply.json()["error"]["status"]) == (401, "UNAUTHENTICATED")
            assert int(reply.headers["x-ratelimit-limit-requests"]) > 0
        other = (await shared_gateway.another_key())["authorization"].removeprefix("Bearer ")
        both = await client.post(f"{path}?key={other}", json=batch("a"), headers={"x-goog-api-key": key})
        assert both.status_code == 400 and "two API keys" in both.json()["error"]["message"]
        for elsewhere in ("/v1/models", "/v1/embeddings", "/v2/embed", "/api/tags"):
            for method in ("GET", "POST"):
                reply = await client.request(method, f"{elsewhere}?key={key}", json={}, headers={"x-goog-api-key": key})
                assert reply.status_code in (401, 405), (method, elsewhere)


async def test_a_key_in_the_query_is_not_logged(shared_gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = f"/v1beta/models/nix:embedContent?key={shared_gateway.key}"
    reply = await shared_gateway.client.post(path, json={"content": content("a")}, headers={"authorization": ""})
    assert reply.status_code == 404
    records = [record for record in caplog.records if record.name == "embedmill.requests"]
    assert records and all(shared_gateway.key not in str(vars(record)) for record in records)


@pytest.mark.parametrize(
    ("body", "model", "status", "word", "named"),
    [
        (batch("a", model="nix"), "nix", 404, "NOT_FOUND", "nix"),
        (batch("a", model="other"), "tiny", 400, "INVALID_ARGUMENT", "requests[0].model"),
        (batch("a", title="t"), "tiny", 400, "INVALID_ARGUMENT", "requests[0].title"),
        (batch("a", taskType="FACT_VERIFICATION"), "tiny", 400, "INVALID_ARGUMENT", "'taskType'"),
        (batch("a", outputDimensionality=99), "tiny", 400, "INVALID_ARGUMENT", "dimension"),
        (batch("a", ""), "tiny", 400, "INVALID_ARGUMENT", "requests[1]"),
        (batch("a", "poison"), "tiny", 400, "INVALID_ARGUMENT", "requests[1]"),
        (batch(), "tiny", 400, "INVALID_ARGUMENT", "'requests'"),
        ({}, "tiny", 400, "INVALID_ARGUMENT", "'requests'"),
        ({"requests": [{"content": content("a", "b")}]}, "tiny", 400, "INVALID_ARGUMENT", "requests[0].content"),
        ({"requests": [{"content": {"parts": [{"inlineData": {}}]}}]}, "tiny", 400, "INVALID_ARGUMENT", "content"),
        ({"requests": [{"content": content("a")}, 7]}, "tiny", 400, "INVALID_ARGUMENT", "requests[1]"),
        (batch("broken"), "tiny", 502, "INTERNAL", "provider"),
    ],
)
async def test_errors_are_googles(
    shared_gateway: Gateway, body: Any, model: str, status: int, word: str, named: str
) -> None:
    reply = await post(shared_gateway, body, model=model)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["status"]) == (status, status, word), reply.text
    assert named in error["message"]


async def test_requests_that_differ_in_their_options(shared_gateway: Gateway) -> None:
    body = batch("a", outputDimensionality=4)
    body["requests"] += batch("b", outputDimensionality=8)["requests"]
    reply = await post(shared_gateway, body)
    assert reply.status_code == 400 and "requests[1]" in reply.json()["error"]["message"]


async def test_what_is_too_long_is_cut_and_said(shared_gateway: Gateway) -> None:
    reply = await post(shared_gateway, batch("a", "word " * 100, model="fixed"), model="fixed")
    assert reply.status_code == 200 and "(1)" in reply.json()["warnings"][0]["details"]


async def test_2048_requests_keep_their_order(shared_gateway: Gateway) -> None:
    texts = [f"text {index}" for index in range(2048)]
    large = (await post(shared_gateway, batch(*texts))).json()["embeddings"]
    assert (
        len(large) == 2048 and large[2000:] == (await post(shared_gateway, batch(*texts[2000:]))).json()["embeddings"]
    )
    over = await post(shared_gateway, batch(*texts, "more"))
    assert over.status_code == 400 and "2048" in over.json()["error"]["message"]
