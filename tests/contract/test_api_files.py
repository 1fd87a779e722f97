"""/v1/files over HTTP: what is stored, what is refused and how it is told, and what other callers see of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.jobs.composition import sweep_of
from tests.gateway import Gateway, close_gateway, error_of, open_gateway

FILES = "/v1/files"
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"tiny","input":"x"}}\n'
USER_DATA = ('name="purpose"', b"user_data")


async def upload(
    gateway: Gateway, content: bytes = LINE, name: str = "in.jsonl", purpose: str = "batch", **fields: str
) -> httpx.Response:
    return await gateway.client.post(FILES, data={"purpose": purpose, **fields}, files={"file": (name, content)})


async def stored(gateway: Gateway, content: bytes = LINE, **options: Any) -> dict[str, Any]:
    reply = await upload(gateway, content, **options)
    assert reply.status_code == 200, reply.text
    file: dict[str, Any] = reply.json()
    return file


def objects(gateway: Gateway) -> list[Path]:
    """What is in the object store."""
    return [path for path in (gateway.runtime.settings.data_dir / "objects").rglob("*") if path.is_file()]


def form(*parts: tuple[str, bytes], boundary: bytes = b"xYzZY", end: bytes = b"--\r\n") -> bytes:
    """A form, byte for byte: each part's Content-Disposition behind `form-data; `, and its bytes."""
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, disposition.encode(), content)
        for disposition, content in parts
    )
    return body + b"--" + boundary + end


async def post_form(gateway: Gateway, body: bytes | AsyncIterator[bytes], **headers: str) -> httpx.Response:
    return await gateway.client.post(
        FILES, content=body, headers={"content-type": "multipart/form-data; boundary=xYzZY", **headers}
    )


async def in_pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for low in range(0, len(body), size):
        yield body[low : low + size]


async def test_a_file_is_kept_as_it_was_sent(gateway: Gateway) -> None:
    content = LINE * 3 + b"\r\n--xYzZ \x00\xff\r\n--"
    file = await stored(gateway, content)
    assert re.fullmatch(r"file-[0-9a-f]{32}", file["id"])
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(content),
        "created_at": file["created_at"],
        "expires_at": file["created_at"] + 2_592_000,  # batch inputs: 30 days
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    assert (await gateway.client.get(f"{FILES}/{file['id']}")).json() == file
    reply = await gateway.client.get(f"{FILES}/{file['id']}/content")
    assert reply.content == content
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"] == 'attachment; filename="in.jsonl"'
    assert reply.headers["content-length"] == str(len(content))
    head = await gateway.client.head(f"{FILES}/{file['id']}/content")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(content)), b"")


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
async def test_fields_may_come_before_and_behind_the_file_in_any_pieces(gateway: Gateway, size: int) -> None:
    parts = [
        ('name="expires_after[anchor]"', b"created_at"),
        ('name="file"; filename="a.ndjson"', b"\r\n--xYzZX\r\n-\r\r\n--xYzZ"),
        ('name="purpose"', b"user_data"),
        ('name="expires_after.seconds"', b"3600"),
    ]
    for order in (parts, parts[::-1]):
        reply = await post_form(gateway, in_pieces(form(*order), size))
        assert reply.status_code == 200, reply.text
        file = reply.json()
        assert (file["purpose"], file["filename"], file["bytes"]) == ("user_data", "a.ndjson", 21)
        assert file["expires_at"] == file["created_at"] + 3600
        assert (await gateway.client.get(f"{FILES}/{file['id']}/content")).content == parts[1][1]


async def test_only_inputs_of_batches_expire_by_themselves(gateway: Gateway) -> None:
    for purpose in ("user_data", "assistants", "evals", "fine-tune", "vision"):
        assert (await stored(gateway, purpose=purpose, name="x.bin"))["expires_at"] is None
    for spelling in ("expires_after[{}]", "expires_after.{}"):
        fields: dict[str, Any] = {spelling.format("anchor"): "created_at", spelling.format("seconds"): "2592000"}
        file = await stored(gateway, purpose="user_data", **fields)
        assert file["expires_at"] == file["created_at"] + 2_592_000


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"purpose": ""}, "purpose", "invalid_value"),
        ({"purpose": "batch_output"}, "purpose", "invalid_value"),  # only batches make these
        ({"purpose": "Batch"}, "purpose", "invalid_value"),
        ({"expires_after[seconds]": "3600"}, "expires_after.anchor", "missing_required_parameter"),
        ({"expires_after.anchor": "created_at"}, "expires_after.seconds", "missing_required_parameter"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after.anchor", "invalid_value"),
        *(
            (
                {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds},
                "expires_after.seconds",
                "invalid_value",
            )
            for seconds in ("3599", "2592001", "-1", "1e5", "", "NaN", "9" * 60)
        ),
        ({"expire_after[seconds]": "3600"}, "expire_after[seconds]", "unknown_parameter"),
        ({"metadata": "{}"}, "metadata", "unknown_parameter"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_kept(
    gateway: Gateway, fields: dict[str, str], param: str, code: str
) -> None:
    reply = await gateway.client.post(FILES, data={"purpose": "batch", **fields}, files={"file": ("a.jsonl", LINE)})
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert objects(gateway) == []


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (form(('name="purpose"', b"batch")), "file", "missing_required_parameter"),
        (form(('name="file"; filename="a.jsonl"', LINE)), "purpose", "missing_required_parameter"),
        (form(('name="purpose"', b"batch"), ('name="data"; filename="a.jsonl"', LINE)), "data", "unknown_parameter"),
        (form(*[('name="file"; filename="a.jsonl"', LINE)] * 2, ('name="purpose"', b"batch")), "file", "invalid_value"),
        (form(*[('name="purpose"', b"batch")] * 2, ('name="file"; filename="a"', LINE)), "purpose", "invalid_value"),
        (form(('name="purpose"', b"\xff"), ('name="file"; filename="a"', LINE)), "purpose", "invalid_value"),
        (form(('filename="a.jsonl"', LINE)), None, "invalid_form"),
        (form(('name="purpose"', b"batch"), ('name="file"; filename="a.jsonl"', LINE), end=b""), None, "invalid_form"),
        (form(('name="purpose"', b"batch"), ('name="file"; filename="a.jsonl"', LINE))[:-30], None, "invalid_form"),
        (form(('name="purpose"', b"batch"))[:40], None, "invalid_form"),
        (b"", None, "invalid_form"),
        (b"--other\r\n", None, "invalid_form"),
        (b'{"purpose":"batch"}', None, "invalid_form"),
        (form(('name="purpose"', b"batch"), ('name="file"; filename="a.jsonl"', b"")), None, None),
        (form(USER_DATA, ('name="file"; filename="a.jsonl"', b"")), "file", "empty_file"),
        (
            form(('name="purpose"', b"user_data"), (f'name="file"; filename="{"n" * 1025}"', LINE)),
            "file",
            "invalid_value",
        ),
        (
            form(('name="purpose"', b"user_data"), (f'name="file"; filename="{"n" * 20_000}"', LINE)),
            None,
            "invalid_form",
        ),
    ],
)
async def test_a_wrong_form_is_refused_and_nothing_is_kept(
    gateway: Gateway, body: bytes, param: str | None, code: str | None
) -> None:
    for sent in (body, in_pieces(body, 11)):
        reply = await post_form(gateway, sent)
        error = error_of(reply, has_code=code is not None)
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error
    assert objects(gateway) == []


async def test_what_is_nearly_a_boundary_is_content_and_holds_nobody_up(gateway: Gateway) -> None:
    content = b"\r\n--xYzZYq" * 100_000
    own = asyncio.create_task(post_form(gateway, form(USER_DATA, ('name="file"; filename="a"', content))))
    other = await gateway.another_key()
    answered = 0
    while not own.done():
        assert (await gateway.client.get(FILES, headers=other)).status_code == 200
        answered += 1
    assert answered >= 3
    file = (await own).json()
    assert (await gateway.client.get(f"{FILES}/{file['id']}/content")).content == content


async def test_a_field_that_never_ends_is_refused(gateway: Gateway) -> None:
    reply = await post_form(gateway, form(('name="purpose"', b"b" * 100_000)))
    assert (reply.status_code, error_of(reply)["param"]) == (413, "purpose")


@pytest.mark.parametrize(
    ("headers", "status", "param"),
    [
        ({"content-type": "application/json"}, 415, "content-type"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "content-type"),
        ({"content-type": "multipart/form-data"}, 400, "content-type"),
        ({"content-type": f"multipart/form-data; boundary={'b' * 71}"}, 400, "content-type"),
        ({"content-type": "multipart/form-data; boundary=xYzZY", "content-encoding": "gzip"}, 415, "content-encoding"),
    ],
)
async def test_what_is_no_form_is_refused(gateway: Gateway, headers: dict[str, str], status: int, param: str) -> None:
    reply = await gateway.client.post(FILES, content=form(('name="purpose"', b"batch")), headers=headers)
    assert (reply.status_code, error_of(reply)["param"]) == (status, param)


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl.gz", "in.csv", "in.ndjson", "IN.TXT", "a.jsonl/x.txt"])
async def test_an_input_of_a_batch_must_be_jsonl(gateway: Gateway, name: str) -> None:
    error = error_of(await upload(gateway, name=name), has_code=False)
    assert error == {
        "message": "Invalid file format for Batch API. Must be .jsonl",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert objects(gateway) == []
    assert (await upload(gateway, name=name, purpose="user_data")).status_code == 200


@pytest.mark.parametrize("name", ["upload", "unknown_file", "a.JSONL", "a.b.jsonl", "übung.jsonl"])
async def test_names_that_batches_take(gateway: Gateway, name: str) -> None:
    assert (await stored(gateway, name=name))["filename"] == name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b" ",
        b"[1]\n",
        b"hello\n" + LINE,
        b'"text"\n',
        b"{\n",
        b"{'a':1}\n",
        b"\xff\xfe{}\n",
        b"null",
        b"[" * 99_999,
    ],
)
async def test_an_input_of_a_batch_must_begin_with_an_object(gateway: Gateway, content: bytes) -> None:
    error = error_of(await upload(gateway, content), has_code=False)
    assert "invalid file format" in error["message"].lower() and "jsonl" in error["message"]
    assert objects(gateway) == []


@pytest.mark.parametrize(
    "content",
    [LINE, LINE.rstrip(), b"\xef\xbb\xbf" + LINE, b"\r\n\r\n" + LINE, LINE.replace(b"\n", b"\r\n"), b"{}",
     b'{"a":"\\ud800"}\n', '{"a":"\u2028"}\n'.encode(), LINE + b"no object", b'{"a":"' + b"x" * 2_000_000 + b'"}\n'],
)  # fmt: skip
async def test_all_else_is_left_to_the_validation_of_the_batch(gateway: Gateway, content: bytes) -> None:
    assert (await stored(gateway, content))["bytes"] == len(content)


@pytest.mark.parametrize("has_length", [True, False])
async def test_a_file_beyond_the_limit_is_refused_and_nothing_is_kept(data_dir: Path, has_length: bool) -> None:
    gateway = await open_gateway(data_dir, max_file_bytes=100_000)
    try:
        for name, size, status in (("a.jsonl", 100_000, 200), ("a.jsonl", 100_001, 413), ("a.jsonl", 9_000_000, 413)):
            body = form(('name="purpose"', b"user_data"), (f'name="file"; filename="{name}"', b"x" * size))
            reply = await post_form(gateway, body if has_length else in_pieces(body, 50_000))
            assert reply.status_code == status, reply.text
            if status == 413:
                assert error_of(reply)["param"] == "file"
        assert [path.stat().st_size for path in objects(gateway)] == [100_000]
    finally:
        await close_gateway(gateway)


async def test_a_body_that_is_too_long_is_not_read(data_dir: Path) -> None:
    gateway = await open_gateway(data_dir, max_file_bytes=1000)

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("nothing of the body is wanted")
        yield b""

    try:
        reply = await post_form(gateway, unread(), **{"content-length": "10000000"})
        assert reply.status_code == 413
    finally:
        await close_gateway(gateway)


async def test_lists_have_pages_an_order_and_a_purpose(gateway: Gateway) -> None:
    files = [await stored(gateway, purpose=("user_data", "batch")[number % 2]) for number in range(5)]
    ids = [file["id"] for file in files]

    async def page(**query: Any) -> tuple[list[str], bool]:
        body = (await gateway.client.get(FILES, params=query)).raise_for_status().json()
        found = [file["id"] for file in body["data"]]
        assert body["object"] == "list"
        assert (body["first_id"], body["last_id"]) == ((found[0], found[-1]) if found else (None, None))
        return found, body["has_more"]

    assert await page() == (ids[::-1], False)
    assert await page(order="asc") == (ids, False)
    assert await page(limit=2) == (ids[:2:-1], True)
    assert await page(limit=2, after=ids[3]) == (ids[2:0:-1], True)
    assert await page(limit=2, after=ids[1]) == ([ids[0]], False)
    assert await page(limit=3, order="asc", after=ids[1]) == (ids[2:], False)
    assert await page(purpose="batch") == ([ids[3], ids[1]], False)
    assert await page(purpose="batch_output") == ([], False)
    assert await page(after="file-" + "0" * 32) == ([], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=10001", "limit"), ("limit=x", "limit"), ("order=up", "order"),
     ("after=job_1", "after"), ("purpose=x", "purpose"), ("before=x", "before")],
)  # fmt: skip
async def test_wrong_queries_are_named(gateway: Gateway, query: str, param: str) -> None:
    reply = await gateway.client.get(f"{FILES}?{query}")
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


async def test_a_deleted_file_is_gone_for_callers_and_then_from_the_store(gateway: Gateway) -> None:
    file = await stored(gateway)
    path = f"{FILES}/{file['id']}"
    assert (await gateway.client.delete(path)).json() == {"id": file["id"], "object": "file", "deleted": True}
    for method, where in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
        assert (await gateway.client.request(method, where)).status_code == 404
    assert (await gateway.client.get(FILES)).json()["data"] == []
    await sweep_of(gateway.runtime).run()
    assert objects(gateway) == []


@pytest.mark.parametrize(
    "file_id", ["file-" + "0" * 32, "file-x", "x", "file-" + "A" * 32, "%00", "file-%FF", "file-" + "0" * 5000, "é"]
)
async def test_what_is_unknown_foreign_or_no_id_looks_the_same(gateway: Gateway, file_id: str) -> None:
    own = await stored(gateway)
    other = await gateway.another_key()
    for path, headers in ((f"{FILES}/{file_id}", {}), (f"{FILES}/{own['id']}", other)):
        for method, where in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
            reply = await gateway.client.request(method, where, headers=headers)
            error = error_of(reply, has_code=False)
            assert (reply.status_code, error["param"], error["type"]) == (404, "id", "invalid_request_error")
            assert error["message"].startswith("No such File object: ")
    assert (await gateway.client.get(FILES, headers=other)).json()["data"] == []
    assert (await gateway.client.get(f"{FILES}/{own['id']}")).status_code == 200


async def test_many_at_once_are_kept_apart(gateway: Gateway) -> None:
    contents = [b"%d\n" % number * 50_000 for number in range(12)]
    files = await asyncio.gather(*(stored(gateway, each, purpose="user_data") for each in contents))
    for file, content in zip(files, contents, strict=True):
        assert (await gateway.client.get(f"{FILES}/{file['id']}/content")).content == content
