"""A body that has a key twice is refused by the key: nobody can tell which value was meant."""

from __future__ import annotations

import orjson
import pytest

from tests.gateway import JOBS, Gateway, error_of

SYNC = "/v1/embeddings"
JSON = {"content-type": "application/json"}
LARGE = orjson.dumps(["x" * 1000] * 5000)  # is not decoded whole
leaving_nothing = pytest.mark.asyncio(loop_scope="session")
ANYWHERE = [
    (b'{"model":"no-such","model":"tiny","input":"a"}', "model"),
    (b'{"model":"tiny","input":"a","input":["b"]}', "input"),
    (b'{"model":"tiny","input":"a","in\\u0070ut":"b"}', "input"),
    (b'{"model":"tiny","dimensions":8,"input":"a","dimensions":null}', "dimensions"),
    (b'{"model":"tiny","input":"a","user":"\\"","user":"b"}', "user"),
    (
        b'{"model":"tiny","input":"a","providerOptions":{"gateway":{"tags":[],"tags":["b"]}}}',
        "providerOptions.gateway.tags",
    ),
    (b'{"model":"tiny","model":"tiny","input":' + LARGE + b"}", "model"),
    (b'{"model":"tiny","input":"a","input":' + LARGE + b"}", "input"),
    (b'{"mod\\u0065l":"tiny","model":"tiny","input":' + LARGE + b"}", "model"),
    (
        b'{"model":"tiny","providerOptions":{"gateway":{"user":"a","user":"b"}},"input":' + LARGE + b"}",
        "providerOptions.gateway.user",
    ),
]
OF_JOBS = [
    (b'{"model":"tiny","input":["a",{"text":"b","text":"c"}]}', "input[1].text"),
    (b'{"model":"tiny","input":[{"id":1,"id":2,"text":"b","url":"u"}]}', "input[0].id"),
    (b'{"model":"tiny","input":"a","metadata":{"k":"1","k":"2"}}', "metadata.k"),
    (b'{"model":"tiny","input":"a","max_cost_usd":"1","max_cost_usd":"100"}', "max_cost_usd"),
    (b'{"model":"tiny","input":' + LARGE[:-1] + b',{"text":"b","text":"c"}]}', "input[5000].text"),
    (b'{"model":"tiny","input":[NaN,{"text":"b","text":"c"}]}', "input[1].text"),
]


@leaving_nothing
@pytest.mark.parametrize(
    ("path", "body", "key"),
    [(path, *case) for path in (SYNC, JOBS) for case in ANYWHERE] + [(JOBS, *case) for case in OF_JOBS],
    ids=lambda value: value[:60].decode() if isinstance(value, bytes) else value,
)
async def test_a_key_that_is_there_twice_is_named(shared_gateway: Gateway, path: str, body: bytes, key: str) -> None:
    reply = await shared_gateway.client.post(path, content=body, headers=JSON)
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (400, key, "duplicate_key")
    assert f"'{key}' occurs twice" in error["message"]


@leaving_nothing
async def test_a_new_ceiling_that_is_there_twice_is_refused(shared_gateway: Gateway) -> None:
    body = b'{"max_cost_usd":"1","max_cost_usd":"100"}'
    reply = await shared_gateway.client.post(f"{JOBS}/job_x/resume", content=body, headers=JSON)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "max_cost_usd")


@leaving_nothing
@pytest.mark.parametrize(
    ("query", "key"), [("model=tiny&model=up", "model"), ('model=tiny&metadata={"k":"1","k":"2"}', "metadata.k")]
)
async def test_the_same_in_the_query_of_a_stream(shared_gateway: Gateway, query: str, key: str) -> None:
    headers = {"content-type": "text/plain"}
    reply = await shared_gateway.client.post(f"{JOBS}?{query}", content=b"a\n", headers=headers)
    assert (reply.status_code, error_of(reply)["param"]) == (400, key)


@leaving_nothing
@pytest.mark.parametrize("path", [SYNC, JOBS])
@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","input":["model","input","\\"model\\":", "\\\\"],"user":null}',
        b'{"model" : "tiny","input":[[1,2],[3]],"dimensions":8,"user":"caf\\u00e9"}',
        b'{"model":"tiny","input":"a","providerOptions":{"gateway":{"tags":["tags"],"user":"user"}}}',
        b'{"model":"tiny","input":[1,2,3]}',
    ],
)
async def test_no_other_body_is_refused(shared_gateway: Gateway, path: str, body: bytes) -> None:
    assert (await shared_gateway.client.post(path, content=body, headers=JSON)).status_code in (200, 202)
