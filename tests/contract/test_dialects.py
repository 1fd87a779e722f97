"""What holds for each dialect: unknown fields, wrong methods and types, the ledger, and a document of its own tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from api.dialects.table import TABLE
from models.usage import UsageRecord
from tests.gateway import Gateway, close_gateway, open_gateway

leaving_nothing = pytest.mark.asyncio(loop_scope="session")
# A path of each dialect, and the least that it takes.
CALLS: dict[str, dict[str, Any]] = {
    "/v3/ai/embedding-model": {"values": ["a"]},
    "/v4/ai/embedding-model": {"values": ["a"]},
    "/v2/embed": {"model": "tiny", "texts": ["a"]},
    "/v1/embed": {"model": "tiny", "texts": ["a"]},
    "/api/embed": {"model": "tiny", "input": "a"},
    "/api/embeddings": {"model": "tiny", "prompt": "a"},
    "/embed?model=tiny": {"inputs": "a"},
    "/tei/tiny": {"inputs": "a"},
    "/tei/tiny/embed": {"inputs": "a"},
    "/v1/models/tiny:embedContent": {"content": {"parts": [{"text": "a"}]}},
    "/v1beta/models/tiny:embedContent": {"content": {"parts": [{"text": "a"}]}},
    "/v1/models/tiny:batchEmbedContents": {"requests": [{"content": {"parts": [{"text": "a"}]}}]},
    "/v1beta/models/tiny:batchEmbedContents": {"requests": [{"content": {"parts": [{"text": "a"}]}}]},
}
MODEL = {"ai-model-id": "tiny"}


async def post(gateway: Gateway, path: str, body: Any, **headers: str) -> httpx.Response:
    return await gateway.client.post(path, json=body, headers=MODEL | headers)


def test_each_path_that_embeds_is_here() -> None:
    called = {path.partition("?")[0].replace("/tiny", "/{model:path}") for path in CALLS}
    assert called == {entry.path for entry in TABLE if entry.method == "POST"}


@leaving_nothing
@pytest.mark.parametrize("path", CALLS)
async def test_an_unknown_field_is_refused_by_name(shared_gateway: Gateway, path: str) -> None:
    reply = await post(shared_gateway, path, CALLS[path] | {"extra_field": 1})
    assert reply.status_code == 400 and "'extra_field'" in reply.text


async def test_unknown_fields_are_left_out_where_the_operator_says_so(data_dir: Path) -> None:
    gateway = await open_gateway(data_dir, unknown_parameters="warn")
    try:
        for path, body in CALLS.items():
            reply = await post(gateway, path, body | {"extra_field": {"a": [1]}})
            assert reply.status_code == 200, (path, reply.text)
            assert "extra_field" in reply.text or "inputs" in body, "a bare array has no room for warnings"
    finally:
        await close_gateway(gateway)


@leaving_nothing
@pytest.mark.parametrize("path", CALLS)
async def test_bodies_that_are_none(shared_gateway: Gateway, path: str) -> None:
    for content in (b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 20_000):
        reply = await shared_gateway.client.post(
            path, content=content, headers=MODEL | {"content-type": "application/json"}
        )
        assert reply.status_code == 400 and reply.headers["content-type"] == "application/json", content[:10]
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        reply = await shared_gateway.client.post(path, content=b"a=b", headers=MODEL | {"content-type": kind})
        assert reply.status_code == 415
    doubled = b'{"x":1,"x":2}'
    reply = await shared_gateway.client.post(
        path, content=doubled, headers=MODEL | {"content-type": "application/json"}
    )
    assert reply.status_code == 400


@leaving_nothing
@pytest.mark.parametrize("path", CALLS)
async def test_every_answer_tells_the_limits_and_has_an_id(shared_gateway: Gateway, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer em_wrong"}):
        reply = await post(shared_gateway, path, CALLS[path], **headers)
        assert reply.status_code == (401 if headers else 200)
        assert int(reply.headers["x-ratelimit-limit-requests"]) > 0
        assert reply.headers["x-request-id"].startswith("req_")


async def test_each_call_is_in_the_ledger(gateway: Gateway) -> None:
    for path, body in CALLS.items():
        assert (await post(gateway, path, body)).status_code == 200
    await gateway.runtime.usage.flush()
    async with gateway.runtime.database.read() as connection:
        statement = select(func.count(), func.sum(UsageRecord.prompt_tokens)).where(UsageRecord.alias == "tiny")
        count, tokens = (await connection.execute(statement)).one()
    assert (count, tokens) == (len(CALLS), len(CALLS))


@leaving_nothing
async def test_the_document_has_them_under_one_tag(shared_gateway: Gateway) -> None:
    paths = (await shared_gateway.client.get("/openapi.json")).json()["paths"]
    for entry in TABLE:
        operation = paths[entry.path.replace(":path}", "}")][entry.method.lower()]
        assert operation["tags"] == ["Compatibility"] and operation["summary"] == entry.summary
