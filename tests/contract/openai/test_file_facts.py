"""Facts of openai_api.md, section 2.1: files."""

from __future__ import annotations

import io
import itertools
import re
from typing import Any

import openai
import orjson
import pytest
from openai import OpenAI

from tests.contract.openai.openai_server import DAY_S, OpenAIServer, jsonl, line, lines

NAMES = itertools.count()
CONTENT = jsonl(lines(3))
REFUSED = "Invalid file format for Batch API. Must be .jsonl"


@pytest.mark.parametrize("purpose", ["batch", "user_data"])
def test_expiry_in_brackets(openai_server: OpenAIServer, purpose: Any) -> None:
    """POST /v1/files: multipart, with expires_after[anchor] and expires_after[seconds] from the SDK."""
    with openai_server.recorder() as recorder:
        file = recorder.client.files.create(
            file=("a.jsonl", CONTENT), purpose=purpose, expires_after={"anchor": "created_at", "seconds": 7200}
        )
    assert b'name="expires_after[seconds]"' in recorder.requests[0].read()
    assert file.expires_at == file.created_at + 7200


def test_expiry_with_dots(client: OpenAI) -> None:
    """POST /v1/files: the dot spelling of other clients, expires_after.seconds."""
    file = client.files.create(
        file=("a.jsonl", CONTENT),
        purpose="batch",
        extra_body={"expires_after.anchor": "created_at", "expires_after.seconds": "3600"},
    )
    assert file.expires_at == file.created_at + 3600


def test_extra_form_parts(client: OpenAI) -> None:
    """POST /v1/files: extra body keys become extra form parts; one that is unknown is named, as in each other call."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a.jsonl", CONTENT), purpose="batch", extra_body={"unheard_of": "1"})
    assert refused.value.param == "unheard_of" and refused.value.code == "unknown_parameter"


@pytest.mark.parametrize("purpose", ["batch", "user_data"])
@pytest.mark.parametrize("content", [CONTENT, io.BytesIO(CONTENT)], ids=["bytes", "stream"])
def test_files_without_a_name(openai_server: OpenAIServer, content: Any, purpose: Any) -> None:
    """filename sent: bytes or a nameless stream are called `upload`, which is accepted for the purpose batch."""
    with openai_server.recorder() as recorder:
        if isinstance(content, io.BytesIO):
            content.seek(0)
        file = recorder.client.files.create(file=content, purpose=purpose)
    assert b'filename="upload"' in recorder.requests[0].read()
    assert (file.filename, file.bytes) == ("upload", len(CONTENT))


def test_a_name_that_batches_cannot_read(client: OpenAI) -> None:
    """refusal: a .txt name with purpose batch."""
    with pytest.raises(openai.BadRequestError, match=re.escape(REFUSED)) as refused:
        client.files.create(file=("a.txt", CONTENT), purpose="batch")
    error = refused.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", None, None)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"no json\n", b"[1]\n", b'{"custom_id":\n'])
def test_content_that_is_no_jsonl(client: OpenAI, content: bytes) -> None:
    """refusal: empty content, or an invalid first line, is refused at the upload; the message names the format."""
    before = [file.id for file in client.files.list(limit=1)]
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("a.jsonl", content), purpose="batch")
    assert refused.value.type == "invalid_request_error"
    assert "invalid file format" in str(refused.value).lower() and "jsonl" in str(refused.value)
    assert [file.id for file in client.files.list(limit=1)] == before


def test_rows_are_not_checked_at_upload(openai_server: OpenAIServer) -> None:
    """not checked at upload: rows that lack a method are accepted, and fail when the batch is validated."""
    client = openai_server.client
    file = client.files.create(file=("a.jsonl", orjson.dumps({"custom_id": "a"})), purpose="batch")
    assert file.status == "processed"
    assert openai_server.wait_for(openai_server.create_for(file.id), "failed").errors is not None


def test_a_list_of_files(openai_server: OpenAIServer) -> None:
    """GET /v1/files: after, limit, order (newest first by default), purpose; first_id, last_id and has_more."""
    client = openai_server.client
    made = [client.files.create(file=(f"{n}.txt", b"x"), purpose="vision") for n in range(3)]
    ids = [file.id for file in made]
    assert [file.id for file in client.files.list(purpose="vision")] == ids[::-1]
    assert [file.id for file in client.files.list(purpose="vision", order="asc")] == ids
    page = client.files.list(purpose="vision", limit=2)
    assert [file.id for file in page.data] == ids[:0:-1] and page.has_more is True
    assert {"first_id": ids[2], "last_id": ids[1]}.items() <= page.to_dict().items()
    rest = client.files.list(purpose="vision", limit=2, after=ids[1])
    assert [file.id for file in rest.data] == [ids[0]] and rest.has_more is False
    for file_id in ids:
        client.files.delete(file_id)


@pytest.mark.parametrize("purpose", ["fine-tune-results", "assistants_output"])
def test_a_list_by_any_purpose_of_files(client: OpenAI, purpose: str) -> None:
    """File object: the purposes that only OpenAI writes can be asked for; here no file has them."""
    assert client.files.list(purpose=purpose).data == []
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.list(purpose="nothing")
    assert refused.value.param == "purpose"


@pytest.mark.parametrize("limit", [0, 10_001])
def test_the_limit_of_a_list(client: OpenAI, limit: int) -> None:
    """GET /v1/files: limit 1..10000."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.list(limit=limit)
    assert refused.value.param == "limit"


@pytest.mark.parametrize("call", ["retrieve", "content", "delete"])
@pytest.mark.parametrize("file_id", ["file-abc123", "file-" + "0" * 32, "no such file"])
def test_a_file_that_does_not_exist(client: OpenAI, call: str, file_id: str) -> None:
    """GET /v1/files/{id}: 404, "No such File object: ID", param id, code null."""
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {file_id}") as refused:
        getattr(client.files, call)(file_id)
    assert (refused.value.type, refused.value.param, refused.value.code) == ("invalid_request_error", "id", None)


def test_a_deleted_file(openai_server: OpenAIServer) -> None:
    """DELETE /v1/files/{id}: {"id", "object": "file", "deleted": true}, and nobody sees the file any more."""
    client = openai_server.client
    file = openai_server.upload([line("a")])
    assert client.files.delete(file.id).to_dict() == {"id": file.id, "object": "file", "deleted": True}
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    assert file.id not in [each.id for each in client.files.list(limit=20)]


def test_content_comes_as_it_was_sent(openai_server: OpenAIServer) -> None:
    """GET /v1/files/{id}/content: raw bytes, application/octet-stream, an attachment, not gzip-encoded."""
    with openai_server.recorder() as recorder:
        file = recorder.client.files.create(file=("Übung 1.jsonl", CONTENT), purpose="batch")
        assert recorder.client.files.content(file.id).content == CONTENT
    headers = recorder.replies[-1].headers
    assert "gzip" in recorder.requests[-1].headers["accept-encoding"] and "content-encoding" not in headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment; filename=")
    assert int(headers["content-length"]) == len(CONTENT)


def test_content_can_be_streamed_to_disk(client: OpenAI, tmp_path: Any) -> None:
    """GET /v1/files/{id}/content: with_streaming_response, as large files are read."""
    content = b"0123456789" * 300_000
    file = client.files.create(file=("a.txt", content), purpose="user_data")
    with client.files.with_streaming_response.content(file.id) as reply:
        reply.stream_to_file(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == content


def test_files_are_processed_at_once(client: OpenAI) -> None:
    """File object: status is `processed` in the first answer; files.wait_for_processing ends at its first look."""
    file = client.files.create(file=("a.jsonl", CONTENT), purpose="batch")
    assert file.status == "processed"
    assert client.files.wait_for_processing(file.id, poll_interval=0, max_wait_seconds=0.001).id == file.id


def test_the_file_object(client: OpenAI) -> None:
    """File object: its keys; inputs of batches live for 30 days, other files until they are deleted."""
    file = client.files.create(file=("a.jsonl", CONTENT), purpose="batch")
    assert re.fullmatch("file-[0-9a-zA-Z]{22,32}", file.id)
    assert {"id", "object", "bytes", "created_at", "filename", "purpose", "status", "expires_at"} <= set(file.to_dict())
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(CONTENT), "a.jsonl", "batch")
    assert file.expires_at == file.created_at + 30 * DAY_S
    assert client.files.retrieve(file.id) == file
    corpus = client.files.create(file=("a.txt", b"x"), purpose="user_data")
    assert corpus.expires_at is None


def test_purposes(openai_server: OpenAIServer) -> None:
    """File object: the purposes that callers may name; batch_output is written by batches alone."""
    purpose: Any
    with openai_server.recorder() as recorder:  # not strict: the FileObject of the SDK knows no `evals`
        for purpose in ("assistants", "evals", "fine-tune", "vision", "user_data"):
            file = recorder.client.files.create(file=("a.txt", b"x"), purpose=purpose)
            assert file.purpose == purpose
            recorder.client.files.delete(file.id)
    wrong: Any
    for wrong in ("batch_output", "nothing"):
        with pytest.raises(openai.BadRequestError) as refused:
            openai_server.client.files.create(file=("a.txt", b"x"), purpose=wrong)
        assert (refused.value.param, refused.value.code) == ("purpose", "invalid_value")


@pytest.mark.parametrize("seconds", [3599, 2_592_001])
def test_limits_of_the_expiry(client: OpenAI, seconds: int) -> None:
    """limits: expires_after.seconds 3600..2592000."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(
            file=("a.jsonl", CONTENT), purpose="batch", expires_after={"anchor": "created_at", "seconds": seconds}
        )
    assert "expires_after" in (refused.value.param or "")
