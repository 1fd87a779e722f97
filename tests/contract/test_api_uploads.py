"""/v1/uploads over HTTP: parts in any order and side by side, and what is refused of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from engine.jobs.composition import sweep_of
from models.file import FilePart, Upload
from tests.contract.test_api_files import LINE, objects
from tests.gateway import Gateway, error_of

UPLOADS = "/v1/uploads"
MIB_64 = 64 * 1024 * 1024
PIECES = [LINE * 3, b"  " + LINE, LINE]
CONTENT = b"".join(PIECES)


async def created(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    body = {"bytes": len(CONTENT), "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
    reply = await gateway.client.post(UPLOADS, json=body | fields)
    assert reply.status_code == 200, reply.text
    upload: dict[str, Any] = reply.json()
    return upload


async def part(gateway: Gateway, upload_id: str, content: bytes, **headers: str) -> httpx.Response:
    return await gateway.client.post(f"{UPLOADS}/{upload_id}/parts", files={"data": ("p", content)}, headers=headers)


async def part_ids(gateway: Gateway, upload_id: str, *contents: bytes) -> list[str]:
    replies = await asyncio.gather(*(part(gateway, upload_id, content) for content in contents))
    assert [reply.status_code for reply in replies] == [200] * len(contents)
    return [reply.json()["id"] for reply in replies]


async def complete(gateway: Gateway, upload_id: str, ids: list[str], **fields: Any) -> httpx.Response:
    return await gateway.client.post(f"{UPLOADS}/{upload_id}/complete", json={"part_ids": ids, **fields})


async def cancel(gateway: Gateway, upload_id: str) -> httpx.Response:
    return await gateway.client.post(f"{UPLOADS}/{upload_id}/cancel")


async def file_content(gateway: Gateway, file_id: str) -> bytes:
    return (await gateway.client.get(f"/v1/files/{file_id}/content")).content


async def let_expire(gateway: Gateway) -> None:
    async with gateway.runtime.database.write() as connection:
        await connection.execute(update(Upload).values(expires_at=Upload.expires_at - 3601.0))


async def test_parts_become_a_file_in_the_order_named(gateway: Gateway) -> None:
    upload = await created(gateway, expires_after={"anchor": "created_at", "seconds": 3600})
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "bytes": len(CONTENT),
        "created_at": upload["created_at"],
        "expires_at": upload["created_at"] + 3600,
        "filename": "in.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "batch",
        "status": "pending",
        "file": None,
    }
    reply = await part(gateway, upload["id"], PIECES[2])
    assert reply.json() == {
        "id": reply.json()["id"],
        "object": "upload.part",
        "created_at": reply.json()["created_at"],
        "upload_id": upload["id"],
    }
    ids = await part_ids(gateway, upload["id"], PIECES[1], PIECES[0], b"not wanted")
    reply = await complete(
        gateway, upload["id"], [ids[1], ids[0], reply.json()["id"]], md5=hashlib.md5(CONTENT).hexdigest().upper()
    )
    done = reply.json()
    file = done.pop("file")
    assert done == {key: value for key, value in (upload | {"status": "completed"}).items() if key != "file"}
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(CONTENT), "in.jsonl", "batch")
    assert file["expires_at"] == file["created_at"] + 3600
    assert (await gateway.client.get(f"/v1/files/{file['id']}")).json() == file
    assert await file_content(gateway, file["id"]) == CONTENT
    await sweep_of(gateway.runtime).run()
    assert len(objects(gateway)) == 3  # the part that was not named is gone


async def test_completing_again_with_the_same_parts_is_the_same(gateway: Gateway) -> None:
    upload = (await created(gateway))["id"]
    ids = await part_ids(gateway, upload, *PIECES)
    replies = await asyncio.gather(*(complete(gateway, upload, ids) for _ in range(5)))
    assert [reply.status_code for reply in replies] == [200] * 5
    assert len({reply.json()["file"]["id"] for reply in replies}) == 1
    assert len((await gateway.client.get("/v1/files")).json()["data"]) == 1
    for refused in (
        await complete(gateway, upload, ids[::-1]),
        await part(gateway, upload, b"late"),
        await cancel(gateway, upload),
    ):
        assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
        assert error_of(refused)["code"] == "upload_completed"
    assert await file_content(gateway, replies[0].json()["file"]["id"]) == CONTENT


async def test_completions_with_other_orders_race_and_one_wins(gateway: Gateway) -> None:
    upload = (await created(gateway, purpose="user_data"))["id"]
    ids = await part_ids(gateway, upload, *PIECES)
    replies = await asyncio.gather(*(complete(gateway, upload, order) for order in (ids, ids[::-1]) * 3))
    assert sorted({reply.status_code for reply in replies}) == [200, 409]
    [file_id] = {reply.json()["file"]["id"] for reply in replies if reply.status_code == 200}
    winner = next(n for n, reply in enumerate(replies) if reply.status_code == 200)
    assert await file_content(gateway, file_id) == b"".join(PIECES if winner % 2 == 0 else PIECES[::-1])


async def test_a_completion_that_is_refused_can_be_put_right(gateway: Gateway) -> None:
    upload = (await created(gateway))["id"]
    other = (await created(gateway))["id"]
    ids = await part_ids(gateway, upload, *PIECES)
    [foreign] = await part_ids(gateway, other, PIECES[0])
    for fields, param, code in (
        ({"part_ids": []}, "part_ids", "empty_array"),
        ({"part_ids": ids[:2]}, "part_ids", "bytes_mismatch"),
        ({"part_ids": [*ids, ids[0]]}, "part_ids[3]", "invalid_value"),
        ({"part_ids": [foreign, *ids[1:]]}, "part_ids[0]", "invalid_value"),
        ({"part_ids": [*ids[:2], "part_" + "0" * 32]}, "part_ids[2]", "invalid_value"),
        ({"part_ids": [*ids[:2], "\x00"]}, "part_ids[2]", "invalid_value"),
        ({"part_ids": ids, "md5": "0" * 32}, "md5", "md5_mismatch"),
        ({"part_ids": ids[::-1], "md5": hashlib.md5(CONTENT).hexdigest()}, "md5", "md5_mismatch"),
        ({"part_ids": ids, "md5": "x"}, "md5", "invalid_value"),
        ({"part_ids": "x"}, "part_ids", "invalid_type"),
        ({"part_ids": [1]}, "part_ids[0]", "invalid_type"),
        ({}, "part_ids", "missing_required_parameter"),
        ({"part_ids": ids, "sha1": "x"}, "sha1", "unknown_parameter"),
    ):
        reply = await gateway.client.post(f"{UPLOADS}/{upload}/complete", json=fields)
        error = error_of(reply)
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error
    assert (await complete(gateway, upload, ids)).status_code == 200


async def test_a_file_of_a_batch_must_begin_with_an_object(gateway: Gateway) -> None:
    upload = (await created(gateway, bytes=5))["id"]
    ids = await part_ids(gateway, upload, b"no o", b"b")
    reply = await complete(gateway, upload, ids)
    assert reply.status_code == 400 and "jsonl" in error_of(reply, has_code=False)["message"]
    reply = await gateway.client.post(
        UPLOADS, json={"bytes": 1, "filename": "x.txt", "mime_type": "text/plain", "purpose": "batch"}
    )
    assert (reply.status_code, error_of(reply, has_code=False)["param"]) == (400, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": 8 * 1024**3 + 1}, "bytes"),
        ({"bytes": 1.5}, "bytes"),
        ({"bytes": "1"}, "bytes"),
        ({"bytes": 2**70}, "bytes"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"filename": "n" * 1025}, "filename"),
        ({"mime_type": "m" * 256}, "mime_type"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
        ({"color": 1}, "color"),
    ],
)
async def test_a_wrong_field_is_named(gateway: Gateway, fields: dict[str, Any], param: str) -> None:
    body = {"bytes": 1, "filename": "in.jsonl", "mime_type": "text/plain", "purpose": "batch"}
    reply = await gateway.client.post(UPLOADS, json=body | fields)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


async def test_a_cancelled_upload_takes_nothing_and_leaves_nothing(gateway: Gateway) -> None:
    upload = (await created(gateway))["id"]
    ids = await part_ids(gateway, upload, *PIECES)
    for _ in range(2):
        assert (await cancel(gateway, upload)).json()["status"] == "cancelled"
    for refused in (await complete(gateway, upload, ids), await part(gateway, upload, b"late")):
        assert (refused.status_code, error_of(refused)["code"]) == (409, "upload_cancelled")
    await sweep_of(gateway.runtime).run()
    assert objects(gateway) == []


async def test_an_upload_expires_after_an_hour_with_its_parts(gateway: Gateway) -> None:
    upload = (await created(gateway))["id"]
    ids = await part_ids(gateway, upload, *PIECES)
    await let_expire(gateway)
    for _ in range(2):  # before and after the sweep
        for refused in (
            await complete(gateway, upload, ids),
            await part(gateway, upload, b"x"),
            await cancel(gateway, upload),
        ):
            assert (refused.status_code, error_of(refused)["code"]) == (409, "upload_expired")
        await sweep_of(gateway.runtime).run()
    assert objects(gateway) == []


async def test_a_part_has_a_form_and_a_size(gateway: Gateway) -> None:
    upload = (await created(gateway, bytes=MIB_64 + 1, purpose="user_data"))["id"]
    path = f"{UPLOADS}/{upload}/parts"
    for reply, status, param in (
        (await gateway.client.post(path, files={"file": ("p", b"x")}), 400, "file"),
        (await gateway.client.post(path, files={"data": ("p", b"")}), 400, "data"),
        (await gateway.client.post(path, files=[("data", ("p", b"x"))] * 2), 400, "data"),
        (await gateway.client.post(path, json={"data": "x"}), 415, "content-type"),
        (await gateway.client.post(path, files={"data": ("p", b"x" * (MIB_64 + 1))}), 413, "data"),
    ):
        assert (reply.status_code, error_of(reply)["param"]) == (status, param), reply.text
    assert objects(gateway) == []
    [largest] = await part_ids(gateway, upload, b"x" * MIB_64)
    assert (await complete(gateway, upload, [largest])).status_code == 400
    [small] = await part_ids(gateway, upload, b"x")
    assert (await complete(gateway, upload, [largest, small])).status_code == 200


@pytest.mark.parametrize("size", [11, 1000, 300_000, MIB_64 + 1])
async def test_a_part_is_no_larger_than_the_file(gateway: Gateway, size: int) -> None:
    upload = (await created(gateway, bytes=10, purpose="user_data"))["id"]

    async def pieces() -> AsyncIterator[bytes]:  # a body that does not say its length
        yield b'--b\r\ncontent-disposition: form-data; name="data"; filename="p"\r\n\r\n'
        for low in range(0, size, 65536):
            yield b"x" * min(65536, size - low)
        yield b"\r\n--b--\r\n"

    form = {"content-type": "multipart/form-data; boundary=b"}
    for reply in (
        await part(gateway, upload, b"x" * size),
        await gateway.client.post(f"{UPLOADS}/{upload}/parts", content=pieces(), headers=form),
    ):
        error = error_of(reply)
        assert (reply.status_code, error["param"], error["code"]) == (400, "data", "too_many_bytes")
        assert "10 bytes" in error["message"]
        assert objects(gateway) == []
    assert await stored_parts(gateway) == 0
    [right] = await part_ids(gateway, upload, b"0123456789")
    assert (await complete(gateway, upload, [right])).status_code == 200


async def test_parts_that_were_sent_again_fit_and_far_more_do_not(gateway: Gateway) -> None:
    half = MIB_64 // 2
    upload = (await created(gateway, bytes=half, purpose="user_data"))["id"]
    first, *_ = [(await part_ids(gateway, upload, b"x" * half))[0] for _ in range(4)]  # twice the size, and 64 MiB
    replies = await asyncio.gather(*(part(gateway, upload, content) for content in (b"x", b"x" * half)))
    for reply in replies:
        error = error_of(reply)
        assert (reply.status_code, error["param"], error["code"]) == (400, "data", "too_many_bytes")
    assert (await stored_parts(gateway), len(objects(gateway))) == (4, 4)
    assert (await complete(gateway, upload, [first])).status_code == 200


async def test_parts_that_arrive_side_by_side_share_the_room(gateway: Gateway) -> None:
    upload = (await created(gateway, bytes=MIB_64 // 4, purpose="user_data"))["id"]  # room for six parts of that size
    replies = await asyncio.gather(*(part(gateway, upload, b"x" * (MIB_64 // 4)) for _ in range(8)))
    assert sorted(reply.status_code for reply in replies) == [200] * 6 + [400] * 2
    assert (await stored_parts(gateway), len(objects(gateway))) == (6, 6)


async def stored_parts(gateway: Gateway) -> int:
    async with gateway.runtime.database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(FilePart))).scalar_one())


@pytest.mark.parametrize("upload_id", ["upload_" + "0" * 32, "upload_x", "file-" + "0" * 32, "%00", "u" * 3000])
async def test_what_is_unknown_foreign_or_no_id_looks_the_same(gateway: Gateway, upload_id: str) -> None:
    own = (await created(gateway))["id"]
    other = await gateway.another_key()
    calls: dict[str, dict[str, Any]] = {
        "parts": {"files": {"data": ("p", b"x")}},
        "complete": {"json": {"part_ids": ["x"]}},
        "cancel": {},
    }
    for which, headers in ((upload_id, {}), (own, other)):
        for path, body in calls.items():
            reply = await gateway.client.post(f"{UPLOADS}/{which}/{path}", headers=headers, **body)
            error = error_of(reply, has_code=False)
            assert (reply.status_code, error["param"]) == (404, "id")
            assert error["message"].startswith("No such Upload object: ")
    assert objects(gateway) == []


async def test_a_key_or_a_retry_makes_one_upload(gateway: Gateway) -> None:
    body = {"bytes": 9, "filename": "in.jsonl", "mime_type": "text/plain", "purpose": "batch"}
    for headers in ([{"idempotency-key": "u"}] * 3, [{}, *[{"x-stainless-retry-count": str(n)} for n in (1, 2)]]):
        replies = [await gateway.client.post(UPLOADS, json=body, headers=each) for each in headers]
        assert len({reply.json()["id"] for reply in replies}) == 1
        assert [reply.headers.get("idempotent-replayed") for reply in replies] == [None, "true", "true"]
    reply = await gateway.client.post(UPLOADS, json=body | {"bytes": 8}, headers={"idempotency-key": "u"})
    assert (reply.status_code, error_of(reply)["code"]) == (422, "idempotency_key_reused")


async def test_a_file_that_was_deleted_is_no_longer_in_its_upload(gateway: Gateway) -> None:
    upload = (await created(gateway))["id"]
    ids = await part_ids(gateway, upload, *PIECES)
    file_id = (await complete(gateway, upload, ids)).json()["file"]["id"]
    await gateway.client.delete(f"/v1/files/{file_id}")
    assert (await complete(gateway, upload, ids)).json()["file"] is None
