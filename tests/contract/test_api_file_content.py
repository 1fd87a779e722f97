"""Downloads of files: ranges, names of any kind in Content-Disposition, and retries that make no twins."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from api.http.byte_range import requested_range
from api.http.content_disposition import attachment
from models.file_errors import RangeNotSatisfiable
from tests.contract.test_api_files import FILES, LINE, form, objects, post_form, stored
from tests.gateway import Gateway, error_of
from tests.waiting import until

CONTENT = bytes(range(256)) * 5000
SIZE = len(CONTENT)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-1048576", 0, 1048577),
        ("bytes=1048575-1048576", 1048575, 1048577),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        ("bytes=5-99999999999", 5, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        ("bytes=-99999999999", 0, SIZE),
        ("bytes=0-99999999999999999999", 0, SIZE),
        ("bytes=7-" + "9" * 6000, 7, SIZE),
        ("bytes=-" + "9" * 6000, 0, SIZE),
        ("bytes=" + "0" * 3000 + "7-" + "0" * 3000 + "9", 7, 10),
        ("BYTES = 7 - 9 ", 7, 10),
    ],
)
async def test_a_range_is_answered_with_206(gateway: Gateway, header: str, start: int, stop: int) -> None:
    file = await stored(gateway, CONTENT, purpose="user_data")
    reply = await gateway.client.get(f"{FILES}/{file['id']}/content", headers={"range": header})
    assert reply.status_code == 206
    assert reply.content == CONTENT[start:stop]
    assert reply.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert reply.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize(
    "header",
    [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=-" + "0" * 99, "bytes=" + "9" * 99 + "-"],
)
async def test_a_range_outside_is_answered_with_416(gateway: Gateway, header: str) -> None:
    file = await stored(gateway, CONTENT, purpose="user_data")
    reply = await gateway.client.get(f"{FILES}/{file['id']}/content", headers={"range": header})
    assert (reply.status_code, reply.headers["content-range"]) == (416, f"bytes */{SIZE}")
    assert error_of(reply)["param"] == "range"


@pytest.mark.parametrize(
    "header",
    [
        "bytes=0-1,5-6",
        "bytes=2-1",
        f"bytes={'9' * 30}-{'8' * 30}",
        "bytes=-",
        "bytes=x-",
        "items=0-1",
        "",
        "bytes=0-1-2",
        "bytes=0x1-2",
    ],
)
async def test_what_is_no_single_range_is_answered_with_all(gateway: Gateway, header: str) -> None:
    file = await stored(gateway, CONTENT, purpose="user_data")
    reply = await gateway.client.get(f"{FILES}/{file['id']}/content", headers={"range": header})
    assert (reply.status_code, reply.content) == (200, CONTENT)


async def test_a_range_of_another_file_is_answered_with_all(gateway: Gateway) -> None:
    file = await stored(gateway, CONTENT, purpose="user_data")
    path = f"{FILES}/{file['id']}/content"
    tag = (await gateway.client.get(path)).headers["etag"]
    for if_range, status in ((tag, 206), ('"other"', 200), ("Mon, 30 Nov 2026 00:00:00 GMT", 200)):
        headers = {"range": "bytes=0-0", "if-range": if_range}
        assert (await gateway.client.get(path, headers=headers)).status_code == status


def test_an_empty_file_has_no_range() -> None:
    for header in ("bytes=0-", "bytes=-1"):
        with pytest.raises(RangeNotSatisfiable):
            requested_range(header, 0)


@pytest.mark.parametrize("digit", ["9", "0", " ", "\t", "9 "])
def test_a_long_range_costs_one_pass(digit: str) -> None:
    started_s = time.process_time()
    for header in (f"bytes={digit * 60_000}x", f"bytes=0-{digit * 60_000}x", f"bytes{digit * 60_000}x"):
        assert requested_range(header, SIZE) is None
    requested_range(f"bytes=0-9{digit * 60_000}-9".removesuffix("-9"), SIZE)
    assert time.process_time() - started_s < 0.5  # with a pass for each byte, it is a minute


# What SDKs and browsers send as names, and what attackers do.
NAMES = [
    "plain.jsonl",
    "with space (1).jsonl",
    "../../etc/passwd",
    "..\\..\\boot.ini",
    'quo"te.jsonl',
    "semi;colon=.jsonl",
    "per%41cent.jsonl",
    "übung-日本語.jsonl",
    "emoji 🦆.jsonl",
    "a\tb\x07\x7f.jsonl",
    "x\u202egpj.exe",
    ".hidden",
    "...",
    "n" * 1024,
]


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_is_kept_and_harmless(gateway: Gateway, name: str) -> None:
    body = {"purpose": "user_data", "filename": name, "mime_type": "text/plain", "bytes": 1}
    reply = await gateway.client.post("/v1/uploads", json=body)
    assert reply.json()["filename"] == name  # metadata: as it was sent
    value = attachment(name)
    assert re.fullmatch(
        r'attachment; filename="[ !#$&-.0-9:;=?@A-Z\[\]^_`a-z{|}~]+"(; filename\*=UTF-8\'\'[\w.~%-]+)?', value
    )
    assert len(value) < 2500 and value.isascii()
    quoted = value.split('"')[1]
    extended = unquote(value.partition("UTF-8''")[2]) or quoted
    for shown in (quoted, extended):
        assert not re.search(r"[/\\\x00-\x1f\x7f\u202e]", shown) and not shown.startswith(".")


async def test_line_ends_in_a_name_start_no_header(gateway: Gateway) -> None:
    file = await stored(gateway, name='a"\r\nx-evil: 1\r\n\r\n.jsonl')  # httpx escapes them as browsers do
    reply = await gateway.client.get(f"{FILES}/{file['id']}/content")
    assert "x-evil" not in reply.headers
    assert "\r" not in attachment("a\r\nx-evil: 1") and "\n" not in attachment("a\r\nx-evil: 1")


async def test_a_name_with_nul_or_in_other_encodings_is_kept_as_text(gateway: Gateway) -> None:
    for disposition, name in (
        ('filename="a\x00b"', "a\ufffdb"),
        ("filename*=utf-8''%C3%BC%E2%82%AC.txt", "ü€.txt"),
        ("", "upload"),
        ('filename=""', "upload"),
    ):
        body = form(('name="purpose"', b"user_data"), (f'name="file"; {disposition}'.rstrip("; "), b"x"))
        reply = await post_form(gateway, body)
        assert (reply.status_code, reply.json().get("filename")) == (200, name), reply.text
    body = form(('name="purpose"', b"user_data"), ('name="file"; filename="LATIN"', b"x")).replace(b"LATIN", b"\xfc")
    assert (await post_form(gateway, body)).json()["filename"] == "\ufffd"


async def test_a_key_makes_one_file_however_often_it_is_sent(gateway: Gateway) -> None:
    key = {"idempotency-key": "once"}
    first = await post(gateway, headers=key)
    assert (first.status_code, first.headers.get("idempotent-replayed")) == (200, None)
    for boundary in (b"xYzZY", b"another"):  # a retry's form has a boundary of its own
        again = await post(gateway, headers=key, boundary=boundary)
        assert (again.status_code, again.headers["idempotent-replayed"], again.json()) == (200, "true", first.json())
    assert len(objects(gateway)) == 1
    for changed in ({"content": LINE * 2}, {"name": "b.jsonl"}, {"purpose": b"user_data"}):
        reply = await post(gateway, headers=key, **changed)
        assert (reply.status_code, error_of(reply)["code"]) == (422, "idempotency_key_reused")
    assert len(objects(gateway)) == 1
    other = await gateway.another_key()
    assert (await post(gateway, headers=key | other)).json()["id"] != first.json()["id"]


async def test_a_key_is_free_again_when_its_request_failed_or_its_file_is_gone(gateway: Gateway) -> None:
    key = {"idempotency-key": "again"}
    assert (await post(gateway, headers=key, content=b"no object")).status_code == 400
    first = (await post(gateway, headers=key)).json()["id"]
    await gateway.client.delete(f"{FILES}/{first}")
    reply = await post(gateway, headers=key)
    assert reply.status_code == 200 and reply.json()["id"] != first and "idempotent-replayed" not in reply.headers


async def test_a_key_whose_request_is_under_way_is_refused(gateway: Gateway) -> None:
    goes_on, is_half = asyncio.Event(), asyncio.Event()
    body = form(('name="purpose"', b"batch"), ('name="file"; filename="a.jsonl"', LINE))

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:100]
        is_half.set()
        await goes_on.wait()
        yield body[100:]

    key = {"idempotency-key": "slow"}
    first = asyncio.create_task(post_form(gateway, slowly(), **key))
    await is_half.wait()
    reply = await post_form(gateway, body, **key)
    assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "true")
    assert error_of(reply)["code"] == "idempotency_in_flight"
    goes_on.set()
    assert (await first).status_code == 200
    assert (await post_form(gateway, body, **key)).json() == (await first).json()


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_has_a_length(gateway: Gateway, key: str) -> None:
    reply = await post(gateway, headers={"idempotency-key": key})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "idempotency-key")


async def test_a_key_of_a_file_is_no_key_of_a_job_or_an_upload(gateway: Gateway) -> None:
    key = {"idempotency-key": "shared"}
    assert (await post(gateway, headers=key)).status_code == 200
    upload = {"bytes": 1, "filename": "a.jsonl", "mime_type": "x", "purpose": "batch"}
    job = {"model": "tiny", "input": ["a"]}
    for path, body in (("/v1/uploads", upload), ("/v1/embeddings/jobs", job)):
        reply = await gateway.client.post(path, json=body, headers=key)
        assert (reply.status_code, error_of(reply)["code"]) == (422, "idempotency_key_reused"), reply.text
    key = {"idempotency-key": "of a job"}
    assert (await gateway.client.post("/v1/embeddings/jobs", json=job, headers=key)).status_code == 202
    reply = await post(gateway, headers=key)
    assert (reply.status_code, error_of(reply)["code"]) == (422, "idempotency_key_reused")


async def test_a_retry_of_an_sdk_creates_nothing_twice_without_a_key(gateway: Gateway) -> None:
    first, second = [(await post(gateway, headers={"x-stainless-retry-count": "0"})).json()["id"] for _ in range(2)]
    assert first != second  # two calls of a caller who wants two
    for count in ("1", "2"):
        reply = await post(gateway, headers={"x-stainless-retry-count": count}, boundary=b"r" + count.encode())
        assert (reply.json()["id"], reply.headers["idempotent-replayed"]) == (second, "true")
    changed = await post(gateway, headers={"x-stainless-retry-count": "1"}, content=LINE * 2)
    assert changed.json()["id"] not in (first, second)
    other = await gateway.another_key()
    assert (await post(gateway, headers={"x-stainless-retry-count": "1", **other})).json()["id"] not in (first, second)
    assert len(objects(gateway)) == 4
    await gateway.client.delete(f"{FILES}/{second}")
    assert (await post(gateway, headers={"x-stainless-retry-count": "1"})).json()["id"] != second


async def test_a_client_that_hangs_up_within_its_file_leaves_nothing(gateway: Gateway) -> None:
    is_half = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield form(('name="purpose"', b"batch"), ('name="file"; filename="a.jsonl"', LINE * 40_000))[:-5000]
        is_half.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(post_form(gateway, half()))
    await is_half.wait()
    await until(lambda: objects(gateway), what="the first bytes")
    request.cancel()
    await until(lambda: not objects(gateway), what="an empty store")


async def test_a_download_goes_on_while_the_store_has_the_bytes(gateway: Gateway) -> None:
    file = await stored(gateway, CONTENT * 3, purpose="user_data")
    [path] = objects(gateway)
    path.unlink()
    reply = await gateway.client.get(f"{FILES}/{file['id']}/content")
    assert (reply.status_code, error_of(reply)["code"]) == (500, "object_missing")


async def post(
    gateway: Gateway,
    *,
    content: bytes = LINE,
    name: str = "a.jsonl",
    purpose: bytes = b"batch",
    boundary: bytes = b"xYzZY",
    headers: dict[str, Any] | None = None,
) -> httpx.Response:
    body = form(('name="purpose"', purpose), (f'name="file"; filename="{name}"', content), boundary=boundary)
    media_type = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    return await gateway.client.post(FILES, content=body, headers={**media_type, **(headers or {})})
