"""Facts of openai_api.md, section 2.2: uploads in several parts."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Upload

from tests.contract.openai.openai_server import OpenAIServer, jsonl, lines

CONTENT = jsonl(lines(100))
CUTS = [CONTENT[:1000], CONTENT[1000:1001], CONTENT[1001:]]


def start(client: OpenAI, size: int = len(CONTENT), **fields: Any) -> Upload:
    return client.uploads.create(
        **{"bytes": size, "filename": "a.jsonl", "mime_type": "application/jsonl", "purpose": "batch", **fields}
    )


def add(client: OpenAI, upload: Upload, cuts: list[bytes] = CUTS) -> list[str]:
    """Ids of the parts, sent at the same time."""
    with ThreadPoolExecutor() as threads:
        parts = threads.map(lambda cut: client.uploads.parts.create(upload.id, data=cut), cuts)
        return [part.id for part in parts]


def test_an_upload_is_pending(client: OpenAI) -> None:
    """POST /v1/uploads: status pending, expires after an hour."""
    upload = start(client)
    assert re.fullmatch("upload_[0-9a-f]+", upload.id) and upload.object == "upload"
    assert (upload.bytes, upload.filename, upload.purpose) == (len(CONTENT), "a.jsonl", "batch")
    assert (upload.status, upload.file, upload.expires_at) == ("pending", None, upload.created_at + 3600)


def test_parts_in_parallel_and_the_order_of_complete(client: OpenAI) -> None:
    """POST …/parts and …/complete: parts may come at the same time; part_ids give their order; a nested file."""
    upload = start(client)
    first, second, third = add(client, upload, [CUTS[2], CUTS[0], CUTS[1]])
    done = client.uploads.complete(
        upload.id,
        part_ids=[second, third, first],
        md5=hashlib.md5(CONTENT, usedforsecurity=False).hexdigest(),
    )
    assert done.status == "completed" and done.file is not None
    assert client.files.content(done.file.id).content == CONTENT
    assert client.files.retrieve(done.file.id) == done.file


def test_a_part(client: OpenAI) -> None:
    """POST …/parts: {"id": "part_…", "object": "upload.part", "created_at", "upload_id"}."""
    upload = start(client)
    part = client.uploads.parts.create(upload.id, data=CUTS[0])
    assert re.fullmatch("part_[0-9a-f]+", part.id)
    assert (part.object, part.upload_id) == ("upload.part", upload.id) and type(part.created_at) is int


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_the_declared_size(client: OpenAI, size: int) -> None:
    """complete: the bytes of all parts must equal what was declared."""
    upload = start(client, size)
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=add(client, upload))


def test_a_wrong_md5(client: OpenAI) -> None:
    """complete: md5 of the whole, checked before there is a file."""
    upload = start(client)
    parts = add(client, upload)
    with pytest.raises(openai.BadRequestError) as refused:
        client.uploads.complete(upload.id, part_ids=parts, md5="0" * 32)
    assert refused.value.param == "md5"
    assert client.uploads.complete(upload.id, part_ids=parts).status == "completed"


def test_a_cancelled_upload(client: OpenAI) -> None:
    """POST …/cancel: status cancelled; no part can be added, and it cannot be completed."""
    upload = start(client)
    parts = add(client, upload)
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.APIStatusError):
        client.uploads.parts.create(upload.id, data=b"x")
    with pytest.raises(openai.APIStatusError):
        client.uploads.complete(upload.id, part_ids=parts)


def test_an_upload_that_does_not_exist(client: OpenAI) -> None:
    """Uploads of nobody are answered with 404."""
    for call in (
        lambda: client.uploads.cancel("upload_abc123"),
        lambda: client.uploads.complete("upload_abc123", part_ids=["part_1"]),
        lambda: client.uploads.parts.create("upload_abc123", data=b"x"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


def test_parts_of_64_mib(client: OpenAI) -> None:
    """uploads.upload_file_chunked: its parts are of 64 MiB unless they are told otherwise, and are taken."""
    content = bytes(64 * 1024 * 1024) + b"the rest"
    done = client.uploads.upload_file_chunked(
        file=content, filename="a.bin", bytes=len(content), mime_type="application/octet-stream", purpose="user_data"
    )
    assert done.file is not None and done.file.bytes == len(content)
    tail = client.files.with_raw_response.content(done.file.id, extra_headers={"Range": "bytes=-9"})
    assert tail.http_response.status_code == 206 and tail.content == b"\0the rest"
    client.files.delete(done.file.id)


def test_upload_file_chunked(openai_server: OpenAIServer, tmp_path: Path) -> None:
    """uploads.upload_file_chunked: parts one after another, then complete; from the disk and from memory."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(CONTENT)
    from_disk = openai_server.client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=1500
    )
    in_memory = openai_server.client.uploads.upload_file_chunked(
        file=CONTENT, filename="b.jsonl", bytes=len(CONTENT), mime_type="application/jsonl", purpose="batch"
    )
    for done in (from_disk, in_memory):
        assert done.file is not None
        assert openai_server.client.files.content(done.file.id).content == CONTENT
    assert from_disk.file is not None and from_disk.file.filename == "requests.jsonl"
    batch = openai_server.wait_for(openai_server.create_for(from_disk.file.id), "completed")
    assert batch.request_counts is not None and batch.request_counts.completed == 100
