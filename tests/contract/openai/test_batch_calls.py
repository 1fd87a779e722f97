"""Facts of openai_api.md, section 3.1: creating, reading, listing and cancelling batches."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.contract.openai.openai_server import HTTP_MODEL, OpenAIServer, line, lines


def refused(server: OpenAIServer, **fields: Any) -> openai.BadRequestError:
    file = server.upload([line("a")])
    with pytest.raises(openai.BadRequestError) as caught:
        server.create_for(file.id, **fields)
    assert caught.value.type == "invalid_request_error"
    return caught.value


def test_an_unknown_input_file(openai_server: OpenAIServer) -> None:
    """unknown input_file_id: 200, and the batch is failed later: code invalid_request, param file_id."""
    batch = openai_server.create_for("file-doesnotexist")
    assert batch.status in ("validating", "failed")
    failed = openai_server.wait_for(batch, "failed")
    assert failed.errors is not None and failed.errors.data is not None
    (error,) = failed.errors.data
    assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)
    message = error.message or ""
    assert message.startswith("Cannot find file file-doesnotexist, or organization ")
    assert "does not have access to it." in message


@pytest.mark.parametrize("endpoint", ["/v1/nothing", "/v1/chat/completions", "/v1/responses", "v1/embeddings", ""])
def test_an_endpoint_of_others(openai_server: OpenAIServer, endpoint: str) -> None:
    """bad endpoint: 400, param endpoint, code invalid_value."""
    error = refused(openai_server, endpoint=endpoint)
    assert (error.param, error.code) == ("endpoint", "invalid_value")


@pytest.mark.parametrize("window", ["now", "24", "24H", "-1h", "0h", "24 h", ""])
def test_a_window_that_is_none(openai_server: OpenAIServer, window: str) -> None:
    """bad completion_window: 400, the message names completion_window."""
    error = refused(openai_server, completion_window=window)
    assert "completion_window" in error.message and error.param == "completion_window"


@pytest.mark.parametrize("value", [["a"], 1, None, {"a": "b"}])
def test_metadata_values_are_text(openai_server: OpenAIServer, value: Any) -> None:
    """non-string metadata value: 400, param metadata.<key>, code invalid_type, "Invalid type for 'metadata.<key>'"."""
    error = refused(openai_server, metadata={"tag": value})
    assert (error.param, error.code) == ("metadata.tag", "invalid_type")
    assert "Invalid type for 'metadata.tag': expected a string, but got" in error.message


def test_metadata_is_kept(openai_server: OpenAIServer) -> None:
    """metadata: up to 16 pairs of text, given back as they are."""
    metadata = {f"key-{n}": "ü" * n for n in range(16)}
    batch = openai_server.create([line("a")], metadata=metadata)
    assert batch.metadata == metadata == openai_server.client.batches.retrieve(batch.id).metadata
    error = refused(openai_server, metadata=metadata | {"one": "more"})
    assert error.param == "metadata"


@pytest.mark.parametrize("call", ["retrieve", "cancel"])
@pytest.mark.parametrize("batch_id", ["batch_abc123", "batch_" + "0" * 32, "batch-invalid"])
def test_a_batch_that_does_not_exist(client: OpenAI, call: str, batch_id: str) -> None:
    """GET /v1/batches/{id} unknown: 404, "No batch found…"."""
    with pytest.raises(openai.NotFoundError, match="No batch found"):
        getattr(client.batches, call)(batch_id)


def test_a_missing_field(client: OpenAI) -> None:
    """The pattern of a missing field: 400, "Missing required parameter: 'x'."."""
    body = {"endpoint": "/v1/embeddings", "completion_window": "24h", "input_file_id": "file-x"}
    for name in body:
        fields = {each: value for each, value in body.items() if each != name}
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/batches", cast_to=object, body=fields)
        assert (caught.value.param, caught.value.code) == (name, "missing_required_parameter"), caught.value


def test_a_cancel_keeps_what_is_done(openai_server: OpenAIServer) -> None:
    """cancel: 200 with cancelling and cancelling_at; what had run stays in the output file."""
    quick, slow = lines(16, model=HTTP_MODEL), lines(16, prefix="s", model=HTTP_MODEL, text="slow")
    client = openai_server.client
    with openai_server.slow_upstream():
        batch = openai_server.create([*quick, *slow])
        openai_server.wait_for_count(batch, 16)
        cancelled = client.batches.cancel(batch.id)
        assert cancelled.status in ("cancelling", "cancelled") and cancelled.cancelling_at is not None
        again = client.batches.cancel(batch.id)
        assert again.status in ("cancelling", "cancelled") and again.cancelling_at == cancelled.cancelling_at
        ended = openai_server.wait_for(batch, "cancelled")
    assert ended.cancelled_at is not None and ended.cancelled_at >= (ended.cancelling_at or 0)
    assert [each["custom_id"] for each in openai_server.lines_of(ended.output_file_id)] == [f"r{n}" for n in range(16)]
    errors = openai_server.lines_of(ended.error_file_id)
    assert [each["custom_id"] for each in errors] == [f"s{n}" for n in range(16)]
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert {None} == {each["response"] for each in errors}
    counts = ended.request_counts
    assert counts is not None and (counts.total, counts.completed) == (32, 16)
    assert client.batches.cancel(batch.id).status == "cancelled"  # allowed, and it stays as it is


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_cancel_that_comes_too_late(openai_server: OpenAIServer, status: str) -> None:
    """cancel when completed or failed: 409, "Cannot cancel a batch with status '…'.", param and code null."""
    requests = [line("a")] if status == "completed" else [line("a", model=None)]
    batch = openai_server.wait_for(openai_server.create(requests), status)
    with pytest.raises(openai.ConflictError, match=f"Cannot cancel a batch with status '{status}'\\.") as refused:
        openai_server.client.batches.cancel(batch.id)
    error = refused.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", None, None)


def test_a_cancel_of_a_batch_that_has_not_begun(openai_server: OpenAIServer) -> None:
    """cancel while validating, and again: both answer with the batch."""
    with openai_server.stopped_workers():
        batch = openai_server.create([line("a")])
        assert batch.status == "validating"
        states = [openai_server.client.batches.cancel(batch.id).status for _ in range(2)]
    assert set(states) <= {"cancelling", "cancelled"}
    ended = openai_server.wait_for(batch, "cancelled")
    assert ended.output_file_id is None


def test_a_list_of_batches(openai_server: OpenAIServer) -> None:
    """GET /v1/batches: after and limit 1..100, newest first; first_id, last_id, has_more."""
    client = openai_server.client
    ids = [openai_server.create([line("a")]).id for _ in range(5)][::-1]
    page = client.batches.list(limit=3)
    assert [batch.id for batch in page.data] == ids[:3] and page.has_more is True
    assert {"first_id": ids[0], "last_id": ids[2]}.items() <= page.to_dict().items()
    assert [batch.id for batch in client.batches.list(limit=2, after=ids[2]).data] == ids[3:]
    seen = [batch.id for batch in client.batches.list(limit=4)]
    assert seen[:5] == ids and len(set(seen)) == len(seen)
    for limit in (0, 101):
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.list(limit=limit)
        assert refused.value.param == "limit"


def test_an_input_file_that_is_deleted_at_once(openai_server: OpenAIServer) -> None:
    """deleting the input file right after create: the batch ends as failed."""
    with openai_server.stopped_workers():
        file = openai_server.upload([line("a")])
        batch = openai_server.create_for(file.id)
        assert openai_server.client.files.delete(file.id).deleted
    failed = openai_server.wait_for(batch, "failed")
    assert failed.errors is not None and failed.errors.data and failed.output_file_id is None


def test_batches_cannot_be_deleted(client: OpenAI) -> None:
    """no delete endpoint for batches: 405 in the envelope."""
    with pytest.raises(openai.APIStatusError) as refused:
        client.delete("/batches/batch_abc123", cast_to=object)
    assert refused.value.status_code in (404, 405)
