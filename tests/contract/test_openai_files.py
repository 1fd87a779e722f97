"""The official OpenAI package for Python: client.files and client.uploads against a running server."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import Server

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"tiny","input":"x"}}\n'


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0, timeout=60.0) as client:
        yield client


def test_a_file_from_its_creation_to_its_end(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINE * 1000)
    file = client.files.create(file=path, purpose="batch")
    assert (file.filename, file.bytes, file.purpose, file.status) == (
        "in.jsonl",
        len(LINE) * 1000,
        "batch",
        "processed",
    )
    assert file.expires_at == file.created_at + 2_592_000
    assert client.files.retrieve(file.id) == file
    assert client.files.wait_for_processing(file.id, poll_interval=0.01) == file
    assert client.files.content(file.id).read() == LINE * 1000
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(file.id)
    assert caught.value.body == {
        "message": f"No such File object: {file.id}",
        "type": "invalid_request_error",
        "param": "id",
        "code": None,
    }


@pytest.mark.parametrize("kind", ["bytes", "stream", "named stream", "tuple"])
def test_each_form_in_which_callers_hand_a_file_over(client: OpenAI, kind: str) -> None:
    named = io.BytesIO(LINE)
    named.name = "named.jsonl"
    given: Any = {
        "bytes": LINE,
        "stream": io.BytesIO(LINE),
        "named stream": named,
        "tuple": ("t.jsonl", LINE, "text/x"),
    }
    file = client.files.create(file=given[kind], purpose="batch")
    names = {"bytes": "upload", "stream": "upload", "named stream": "named.jsonl", "tuple": "t.jsonl"}
    assert (file.filename, file.bytes) == (names[kind], len(LINE))


def test_an_expiry_as_the_sdk_writes_it(client: OpenAI) -> None:
    file = client.files.create(file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 7200})
    assert file.expires_at == file.created_at + 7200
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 1})
    assert caught.value.param == "expires_after.seconds"


def test_refusals_are_errors_of_the_sdk(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("in.txt", LINE), purpose="batch")
    error = caught.value
    assert (error.param, error.code, error.type) == (None, None, "invalid_request_error")
    assert "Invalid file format for Batch API. Must be .jsonl" in error.message
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=b"", purpose="batch")
    # Lines without a method are found when a batch is validated.
    client.files.create(file=b'{"custom_id":"a"}\n', purpose="batch")


def test_lists_go_through_all_pages(client: OpenAI) -> None:
    ids = [client.files.create(file=b"x", purpose="vision").id for _ in range(5)]
    assert [file.id for file in client.files.list(purpose="vision", limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(purpose="vision", limit=2, order="asc")] == ids
    page = client.files.list(purpose="vision", limit=3)
    assert (len(page.data), page.has_more, page.has_next_page()) == (3, True, True)


def test_a_download_as_a_stream(client: OpenAI, tmp_path: Path) -> None:
    content = LINE * 50_000
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    with client.files.with_streaming_response.content(file.id) as reply:
        reply.stream_to_file(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    with client.files.with_streaming_response.content(file.id) as reply:
        assert next(iter(reply.iter_bytes(1000))) == content[:1000]  # and the rest is never read
    ranged = client.files.content(file.id, extra_headers={"range": "bytes=10-19"})
    assert ranged.read() == content[10:20]


def test_an_upload_in_chunks(client: OpenAI, tmp_path: Path) -> None:
    content = LINE * 1000
    path = tmp_path / "big.jsonl"
    path.write_bytes(content)
    upload = client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/jsonl",
        purpose="batch",
        part_size=30_000,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert upload.status == "completed" and upload.file is not None
    assert (upload.file.bytes, upload.file.filename) == (len(content), "big.jsonl")
    assert client.files.content(upload.file.id).read() == content
    again = client.uploads.upload_file_chunked(
        file=content, filename="m.jsonl", bytes=len(content), mime_type="application/jsonl", purpose="batch"
    )
    assert again.file is not None and client.files.content(again.file.id).read() == content


def test_an_upload_by_hand(client: OpenAI) -> None:
    upload = client.uploads.create(bytes=6, filename="a.bin", mime_type="application/x", purpose="user_data")
    parts = [client.uploads.parts.create(upload.id, data=data) for data in (b"def", b"abc")]
    assert [(part.object, part.upload_id) for part in parts] == [("upload.part", upload.id)] * 2
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[parts[0].id])
    done = client.uploads.complete(upload.id, part_ids=[parts[1].id, parts[0].id])
    assert done.file is not None and client.files.content(done.file.id).read() == b"abcdef"
    with pytest.raises(openai.ConflictError):
        client.uploads.cancel(upload.id)
    other = client.uploads.create(bytes=6, filename="a.bin", mime_type="application/x", purpose="user_data")
    assert client.uploads.cancel(other.id).status == "cancelled"


def test_a_key_in_the_headers_makes_one_file(client: OpenAI) -> None:
    headers = {"Idempotency-Key": "sdk-file"}
    ids = {client.files.create(file=LINE, purpose="batch", extra_headers=headers).id for _ in range(3)}
    assert len(ids) == 1


def test_other_keys_see_nothing(client: OpenAI, server: Server) -> None:
    file = client.files.create(file=LINE, purpose="batch")
    stranger = OpenAI(base_url=server.base_url, api_key="em_wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.files.retrieve(file.id)
    with OpenAI(base_url=server.base_url, api_key=server.jobs_only_key, max_retries=0) as colleague:
        assert colleague.files.retrieve(file.id) == file
