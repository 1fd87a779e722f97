"""What one caller may make the API do: bodies of any legal size hold up nobody, and cost little memory."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import func, select

from models.job import RefusedInputs, Shard, ShardInputs
from tests.gateway import JOBS, Gateway, close_gateway, error_of, open_gateway

PATH = "/v1/embeddings"
JSON = {"content-type": "application/json"}


async def post(gateway: Gateway, path: str, body: bytes, **headers: str) -> httpx.Response:
    return await gateway.client.post(path, content=body, headers=JSON | headers, timeout=120.0)


def body_of(given: bytes, **fields: Any) -> bytes:
    return orjson.dumps({"model": "tiny", **fields})[:-1] + b',"input":' + given + b"}"


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        (b"[" + b"[1]," * 400_000 + b"[1]]", "input", "array_above_max_length"),
        (b"[" + b'"",' * 400_000 + b'""]', "input", "array_above_max_length"),
        (b"[" + b"1," * 400_000 + b"1]", "input", "input_too_long"),
        (b"[[" + b"1," * 400_000 + b"1]]", "input[0]", "input_too_long"),
        (b'["a",[' + b"[1]," * 400_000 + b"[1]]]", "input[1]", "invalid_type"),
        (b'["' + b"a" * 2_000_000 + b'"]', "input[0]", "input_too_long"),
        (b'["a",{"x":[' + b"[1]," * 400_000 + b"[1]]}]", "input[1]", "invalid_type"),
        (b'["' + b"a" * 5_000_000 + b'"', None, "invalid_json"),
    ],
    ids=["token arrays", "empty texts", "numbers", "one array", "nested", "a long text", "an object", "cut off"],
)  # fmt: skip
async def test_a_large_body_is_refused_by_its_shape(
    gateway: Gateway, given: bytes, param: str | None, code: str
) -> None:
    reply = await post(gateway, PATH, body_of(given))
    assert (reply.status_code, error_of(reply)["param"], error_of(reply)["code"]) == (400, param, code)


async def test_a_large_body_is_read_right(gateway: Gateway) -> None:
    texts = [f'{i} "quoted" \\ [brackets], {{braces}} é😀 ' * 40 for i in range(2000)]
    small = [(await gateway.embed([texts[i]], encoding_format="base64")).json()["data"][0] for i in (0, 999, 1999)]
    reply = await gateway.embed(texts, encoding_format="base64")
    data = reply.json()["data"]
    assert [data[i]["embedding"] for i in (0, 999, 1999)] == [one["embedding"] for one in small]


@pytest.mark.parametrize("name", ["providerOptions", "metadata"])
@pytest.mark.parametrize("size", [17_000, 6_000_000])
async def test_options_have_a_limit(gateway: Gateway, name: str, size: int) -> None:
    value = {"fake": {"x": "y" * size}} if name == "providerOptions" else {"k": "y" * size}
    reply = await gateway.client.post(JOBS, json={"model": "tiny", "input": "a", name: value})
    assert (reply.status_code, error_of(reply)["param"]) == (400, name)


@pytest.mark.parametrize(
    ("given", "param"),
    [(b'["a","half \\ud83d","b"]', "input[1]"), (b'"\\ude00"', "input"), (b'["a","b",NaN]', "input[2]"),
     (b'["\xe9","b"]', "input[0]")],
)  # fmt: skip
async def test_a_sync_error_names_the_input_that_is_no_json(gateway: Gateway, given: bytes, param: str) -> None:
    reply = await post(gateway, PATH, body_of(given))
    assert (reply.status_code, error_of(reply)["param"], error_of(reply)["code"]) == (400, param, "invalid_json")


async def test_half_an_emoji_fails_its_index_alone_in_a_json_job(gateway: Gateway) -> None:
    items = [b'"a"', b'{"id":"x","text":"half \\ud83d"}', b'{"id":1.0,"text":"b"}', b'{"id":4,"text":"d","score":NaN}']
    reply = await post(gateway, JOBS, body_of(b"[" + b",".join(items) + b"]"))
    assert reply.status_code == 202, reply.text
    done = await gateway.run(reply.json()["id"])
    assert (done["status"], done["counts"]["completed"]) == ("completed_with_errors", 2)
    rows = [orjson.loads(line) for line in (await gateway.results(done["id"])).content.splitlines()]
    assert [row["id"] for row in rows] == [None, "x", "1.0", "4"]
    assert ["error" in row for row in rows] == [False, True, False, True]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("application/x-ndjson", b'"a"\n' + b"\n" * 60_000 + b'"b"\n' + b"\n" * 60_000),
        ("text/plain", b"a\n" + b"\n" * 60_000 + b"b\n" + b"\n" * 60_000),
        ("application/json", body_of(b'["a",' + b'"",' * 60_000 + b'"b"]')),
        ("application/x-ndjson", b'"a"\n' + b'{\n""\n' * 30_000 + b'"b"\n'),
    ],
    ids=["ndjson", "text", "json", "two reasons in turn"],
)  # fmt: skip
async def test_refused_inputs_are_ranges(gateway: Gateway, kind: str, given: bytes) -> None:
    query = {} if kind == "application/json" else {"model": "tiny"}
    reply = await gateway.client.post(JOBS, params=query, content=given, headers={"content-type": kind}, timeout=120.0)
    job = reply.json()
    assert reply.status_code == 202, reply.text
    assert job["counts"] == {"total": 60_002, "completed": 0, "failed": 60_000, "pending": 2}
    assert sum(error["count"] for error in job["errors"]) == 60_000
    async with gateway.runtime.database.read() as connection:
        rows = (await connection.execute(select(func.count()).select_from(RefusedInputs))).scalar_one()
        size = (await connection.execute(select(func.sum(func.length(ShardInputs.inputs))))).scalar_one()
        shards = (await connection.execute(select(func.count()).select_from(Shard))).scalar_one()
    assert rows <= 2 * shards and shards <= 100 and size < 10_000
    done = await gateway.run(job["id"])
    assert (done["status"], done["counts"]["completed"]) == ("completed_with_errors", 2)
    listed = (await gateway.client.get(f"{JOBS}/{job['id']}/errors", timeout=120.0)).content.splitlines()
    assert [orjson.loads(listed[i])["index"] for i in (0, 1, 30_000, -1)] == [1, 2, 30_001, 60_000]
    assert len(listed) == 60_000
    rows_of = [orjson.loads(line) for line in (await gateway.results(job["id"], start=59_999)).content.splitlines()]
    assert [(row["index"], "error" in row) for row in rows_of] == [(59_999, True), (60_000, True), (60_001, False)]


async def test_limits_of_a_corpus(data_dir: Path) -> None:
    gateway = await open_gateway(data_dir, max_inputs_per_job=10, max_errors_per_job=5)
    reply = await gateway.stream(b'"a"\n' * 11)
    assert (reply.status_code, error_of(reply)["code"]) == (413, "too_many_inputs")
    reply = await gateway.stream(b'"a"\n' + b"{\n" * 6)
    assert (reply.status_code, error_of(reply)["code"]) == (413, "too_many_errors")
    assert (await gateway.stream(b'"a"\n' * 5 + b"{\n" * 5)).status_code == 202
    reply = await gateway.stream(gzip.compress(b'"a"\n' + bytes(40_000_000)))
    assert (reply.status_code, error_of(reply)["code"]) == (413, "compression_ratio_too_high")
    await close_gateway(gateway)


async def test_slow_bodies_are_not_waited_for(data_dir: Path) -> None:
    gateway = await open_gateway(data_dir, body_timeout_s=0.05, upload_window_s=0.05, upload_min_bytes_per_s=1e6)

    async def drip() -> AsyncIterator[bytes]:
        yield b'"a"\n'
        await asyncio.Event().wait()

    for path, kind in ((JOBS, "application/x-ndjson"), (PATH, "application/json")):
        reply = await gateway.client.post(
            path, params={"model": "tiny"} if path == JOBS else {}, content=drip(), headers={"content-type": kind}
        )
        assert (reply.status_code, error_of(reply)["code"]) == (408, "body_too_slow")
    await close_gateway(gateway)
