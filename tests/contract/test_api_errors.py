"""Every error is OpenAI's envelope, the framework's own too, and names the guilty field."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.routes import all_routes
from tests.gateway import JOBS, Gateway, error_of
from tests.waiting import until

PATH = "/v1/embeddings"
JSON = {"content-type": "application/json"}
leaving_nothing = pytest.mark.asyncio(loop_scope="session")


@leaving_nothing
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "model", "missing_required_parameter"),
        ({"model": "tiny"}, "input", "missing_required_parameter"),
        ({"input": "a"}, "model", "missing_required_parameter"),
        ({"model": 1, "input": "a"}, "model", "invalid_type"),
        ({"model": "tiny", "input": None}, "input", "invalid_type"),
        ({"model": "tiny", "input": 5}, "input", "invalid_type"),
        ({"model": "tiny", "input": {}}, "input", "invalid_type"),
        ({"model": "tiny", "input": ""}, "input", "empty_input"),
        ({"model": "tiny", "input": []}, "input", "empty_array"),
        ({"model": "tiny", "input": ["a", ""]}, "input[1]", "empty_input"),
        ({"model": "tiny", "input": [[1], []]}, "input[1]", "empty_input"),
        ({"model": "tiny", "input": ["a", "b", "c", None]}, "input[3]", "invalid_type"),
        ({"model": "tiny", "input": ["a", "b", "c", 1.5]}, "input[3]", "invalid_type"),
        ({"model": "tiny", "input": ["a", "b", True]}, "input[2]", "invalid_type"),
        ({"model": "tiny", "input": ["a", {"text": "b"}]}, "input[1]", "invalid_type"),
        ({"model": "tiny", "input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"model": "tiny", "input": ["a", [1]]}, "input[1]", "invalid_type"),
        ({"model": "tiny", "input": [[1], "a"]}, "input[1]", "invalid_type"),
        ({"model": "tiny", "input": [1, "a"]}, "input", "invalid_type"),
        ({"model": "tiny", "input": [-1]}, "input", "invalid_input"),
        ({"model": "tiny", "input": [[2**70]]}, "input[0]", "invalid_input"),
        ({"model": "tiny", "input": ["a"] * 2049}, "input", "array_above_max_length"),
        ({"model": "tiny", "input": "a", "dimensions": -1}, "dimensions", "invalid_value"),
        ({"model": "tiny", "input": "a", "dimensions": 17}, "dimensions", "invalid_value"),
        ({"model": "tiny", "input": "a", "dimensions": "5"}, "dimensions", "invalid_type"),
        ({"model": "cut", "input": "a", "dimensions": 5}, "dimensions", "invalid_value"),
        ({"model": "fixed", "input": "a", "dimensions": 8}, "dimensions", "invalid_value"),
        ({"model": "tiny", "input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"model": "tiny", "input": "a", "truncate": "start"}, "truncate", "invalid_value"),
        ({"model": "tiny", "input": "a", "user": "u" * 257}, "user", "invalid_value"),
        ({"model": "tiny", "input": "a", "user": "nul\0"}, "user", "invalid_value"),
        ({"model": "tiny", "input": "a", "providerOptions": {"fake": 1}}, "providerOptions", "invalid_type"),
        ({"model": "tiny", "input": "a", "inputs": 1}, "inputs", "unknown_parameter"),
        ({"model": "tiny", "input": "a", "stream": False}, "stream", "unknown_parameter"),
    ],
)  # fmt: skip
async def test_a_bad_body_is_a_400_that_names_the_field(
    shared_gateway: Gateway, fields: Any, param: str, code: str
) -> None:
    reply = await shared_gateway.client.post(PATH, json=fields)
    error = error_of(reply)
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["code"], error["param"].removesuffix(".fake")) == (code, param)
    assert param.split("[")[0] in error["message"] or "Supported values are" in error["message"]


@leaving_nothing
@pytest.mark.parametrize(
    "body",
    [b"", b"  ", b"{", b'{"model":"tiny","input":"\xff"}', b'{"model":"tiny","input":"\\ud800"}', b"\xef\xbb\xbf{}",
     b'{"model":"tiny","input":"a"} x', b'{"model":"tiny","input":NaN}',
     b'{"model":"tiny","providerOptions":' + b'{"a":' * 50_000],
)  # fmt: skip
async def test_what_is_not_json(shared_gateway: Gateway, body: bytes) -> None:
    reply = await shared_gateway.client.post(PATH, content=body, headers=JSON)
    assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_json")


@leaving_nothing
@pytest.mark.parametrize("body", [b"[]", b"null", b'"a"', b"1"])
async def test_json_that_is_no_object(shared_gateway: Gateway, body: bytes) -> None:
    reply = await shared_gateway.client.post(PATH, content=body, headers=JSON)
    assert (reply.status_code, error_of(reply)["param"]) == (400, None)


async def test_an_unknown_model(gateway: Gateway) -> None:
    for reply in (
        await gateway.embed("a", model="nope"),
        await gateway.client.post(JOBS, json={"model": "nope", "input": "a"}),
    ):
        error = error_of(reply)
        assert (reply.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
        assert "`nope`" in error["message"]


@leaving_nothing
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/embedding", 404, "not_found"),
        ("GET", "/v1/embeddings/jobs/x/y", 404, "not_found"),
        ("GET", PATH, 405, "method_not_allowed"),
        ("PUT", PATH, 405, "method_not_allowed"),
        ("PATCH", JOBS, 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ],
)
async def test_the_frameworks_own_errors(
    shared_gateway: Gateway, method: str, path: str, status: int, code: str
) -> None:
    reply = await shared_gateway.client.request(method, path)
    assert (reply.status_code, error_of(reply)["code"]) == (status, code)
    assert path in error_of(reply)["message"] and (status != 405 or reply.headers["allow"])


@leaving_nothing
async def test_a_wrong_method_names_all_of_the_path(shared_gateway: Gateway) -> None:
    methods: dict[str, set[str]] = {}
    for route in all_routes():
        methods.setdefault(route.path, set()).add(route.method)
    assert methods["/v1/files"] == {"GET", "POST"}
    for template, allowed in methods.items():
        path = re.sub(r"\{[^}]*\}", "x", template)
        for method in {"PUT", "PATCH", "DELETE"} - allowed:
            reply = await shared_gateway.client.request(method, path)
            assert reply.status_code == 405, (method, path)
            named = set(reply.headers["allow"].split(", "))
            assert named >= allowed and method not in named, (method, path)
            assert f"Use {reply.headers['allow']}." in reply.text  # in the envelope of its dialect


@leaving_nothing
@pytest.mark.parametrize("path", [PATH, JOBS])
@pytest.mark.parametrize("kind", ["text/html", "application/xml", "multipart/form-data; boundary=x"])
async def test_a_media_type_that_nobody_reads(shared_gateway: Gateway, path: str, kind: str) -> None:
    reply = await shared_gateway.client.post(path, content=b"x", headers={"content-type": kind})
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (415, "content-type", "unsupported_media_type")


@leaving_nothing
@pytest.mark.parametrize("path", [PATH, JOBS])
async def test_an_encoding_that_nobody_reads(shared_gateway: Gateway, path: str) -> None:
    reply = await shared_gateway.client.post(path, content=b"x", headers={**JSON, "content-encoding": "br"})
    assert (reply.status_code, error_of(reply)["param"]) == (415, "content-encoding")


class Unread:
    """A body that must not be asked for: it says how much of it was."""

    def __init__(self, chunks: int = 10_000) -> None:
        self.given = 0
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._chunks):
            self.given += 1
            yield b" " * 65_536


async def test_too_large_by_its_own_word_is_not_read_at_all(gateway: Gateway) -> None:
    for path in (PATH, JOBS):
        body = Unread()
        headers = {**JSON, "content-length": str(64 * 1024 * 1024)}
        reply = await gateway.client.post(path, content=body, headers=headers)
        assert (reply.status_code, error_of(reply)["code"]) == (413, "payload_too_large")
        assert body.given <= 1  # the in-process transport draws one piece before the app is asked


async def test_too_large_without_saying_so_is_read_no_further_than_the_limit(gateway: Gateway) -> None:
    body = Unread()
    reply = await gateway.client.post(PATH, content=body, headers=JSON)
    limit = gateway.runtime.settings.max_body_bytes
    assert reply.status_code == 413 and body.given * 65_536 <= limit + 3 * 65_536


async def test_a_gzip_bomb_is_stopped(gateway: Gateway) -> None:
    bomb = gzip.compress(b" " * (64 * 1024 * 1024))
    reply = await gateway.client.post(PATH, content=bomb, headers={**JSON, "content-encoding": "gzip"})
    assert reply.status_code == 413 and error_of(reply)
    small = gzip.compress(b'{"model":"tiny","input":"a"}')
    headers = {**JSON, "content-encoding": "gzip"}
    assert (await gateway.client.post(PATH, content=small, headers=headers)).status_code == 200
    cut = await gateway.client.post(PATH, content=small[:-5], headers=headers)
    assert (cut.status_code, error_of(cut)["code"]) == (400, "invalid_encoding")


@leaving_nothing
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer ", "Basic eA==", "Bearer em_wrong", "x"])
async def test_no_key_and_a_bad_one(shared_gateway: Gateway, header: str | None) -> None:
    async with httpx.AsyncClient(transport=shared_gateway.transport(), base_url="http://gateway") as stranger:
        reply = await stranger.post(PATH, content=b"not even json", headers={"authorization": header} if header else {})
    assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"


async def test_a_key_in_x_api_key(gateway: Gateway) -> None:
    async with httpx.AsyncClient(transport=gateway.transport(), base_url="http://gateway") as other:
        assert (await other.get("/v1/models", headers={"x-api-key": gateway.key})).status_code == 200


@leaving_nothing
@pytest.mark.parametrize("empty", ["Bearer", "Bearer ", "bearer", ""])
async def test_an_empty_key_beside_a_good_one_does_not_count(shared_gateway: Gateway, empty: str) -> None:
    async with httpx.AsyncClient(transport=shared_gateway.transport(), base_url="http://gateway") as other:
        for headers in (
            {"authorization": empty, "x-api-key": shared_gateway.key},
            {"authorization": f"Bearer {shared_gateway.key}", "x-api-key": ""},
        ):
            assert (await other.get("/v1/models", headers=headers)).status_code == 200
        reply = await other.get("/v1/models", headers={"authorization": empty, "x-api-key": " "})
    message = error_of(reply)["message"]
    assert reply.status_code == 401 and "Authorization or x-api-key" in message and "`Authorization: Bearer" in message


@leaving_nothing
@pytest.mark.parametrize(
    ("authorization", "x_api_key", "judged", "form"),
    [
        ("Basic eA==", "good", "Authorization", "`Bearer <key>`"),
        ("Digest a=b", "", "Authorization", "`Bearer <key>`"),
        ("good", "", "Authorization", "`Bearer <key>`"),  # the scheme was forgotten
        ("Bearer em_wrong", "good", "Authorization", "`Bearer <key>`"),
        ("Bearer", "wrong", "x-api-key", "`<key>`"),
        ("", "Bearer good", "x-api-key", "`<key>`"),
    ],
)
async def test_a_401_names_the_header_that_was_judged_and_its_form(
    shared_gateway: Gateway, authorization: str, x_api_key: str, judged: str, form: str
) -> None:
    sent = {"authorization": authorization, "x-api-key": x_api_key}
    headers = {name: value.replace("good", shared_gateway.key) for name, value in sent.items()}
    async with httpx.AsyncClient(transport=shared_gateway.transport(), base_url="http://gateway") as other:
        reply = await other.get("/v1/models", headers=headers)
    message = error_of(reply)["message"]
    assert reply.status_code == 401 and f"The header {judged} was judged" in message and f"form is {form}" in message
    assert shared_gateway.key not in message


async def test_every_reply_has_a_request_id_of_its_own(gateway: Gateway) -> None:
    paths = ["/healthz", "/v1/models", "/nowhere", f"{JOBS}/job_x", "/docs"]
    ids = [(await gateway.client.get(path)).headers["x-request-id"] for path in paths * 2]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("req_[0-9a-f]{32}", each) for each in ids)


async def test_a_database_that_is_away_is_a_503_that_says_when(gateway: Gateway) -> None:
    stranger = await gateway.another_key()
    file = gateway.runtime.settings.data_dir / "embedmill.db"
    await gateway.runtime.database.close()
    before = set(threading.enumerate())
    file.unlink()
    file.mkdir()
    reply = await gateway.client.get(JOBS, headers=stranger)
    assert reply.status_code == 503 and error_of(reply)["code"] == "storage_unavailable"
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    await gateway.runtime.database.close()
    # A driver's thread that could not open the file says so to a loop that must live.
    await until(lambda: not set(threading.enumerate()) - before)
