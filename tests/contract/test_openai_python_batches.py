"""The official OpenAI package for Python, `client.batches`: the calls around a batch, without a worker that runs it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.base_url, api_key=server.key, max_retries=2, timeout=30.0) as client:
        yield client


def upload(client: OpenAI) -> str:
    body = {"model": "tiny", "input": "x"}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body})
    return client.files.create(file=("in.jsonl", io.BytesIO(line.encode())), purpose="batch").id


def create(client: OpenAI, file_id: str) -> openai.types.Batch:
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h", metadata={"team": "search"}
    )


def test_a_batch_is_created_shown_and_cancelled(client: OpenAI) -> None:
    file_id = upload(client)
    batch = create(client, file_id)
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/embeddings")
    assert (batch.input_file_id, batch.metadata, batch.completion_window) == (file_id, {"team": "search"}, "24h")
    assert batch.expires_at == batch.created_at + 86400
    assert batch.request_counts is not None and batch.request_counts.total == 0
    assert batch.usage is not None and batch.usage.output_tokens_details.reasoning_tokens == 0
    assert batch.errors is None and batch.output_file_id is None and batch.error_file_id is None
    assert client.batches.retrieve(batch.id) == batch
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status in ("cancelling", "cancelled") and cancelled.cancelling_at is not None
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")


def test_all_pages_are_read_by_themselves(client: OpenAI) -> None:
    created = [create(client, "file-" + "0" * 32).id for _ in range(7)]
    listed = [batch.id for batch in client.batches.list(limit=3)]
    assert set(created) <= set(listed) and len(set(listed)) == len(listed)
    assert listed[:7] == sorted(created, reverse=True)
    assert client.batches.list(limit=3).has_more is True


def test_what_is_refused_is_an_exception_of_the_sdk(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(input_file_id="f", endpoint="/v1/nonsense", completion_window="24h")  # type: ignore[arg-type]
    assert (refused.value.param, refused.value.code) == ("endpoint", "invalid_value")
    with pytest.raises(openai.BadRequestError, match="completion_window"):
        client.batches.create(input_file_id="f", endpoint="/v1/embeddings", completion_window="now")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(
            input_file_id="f",
            endpoint="/v1/embeddings",
            completion_window="24h",
            metadata={"a": ["b"]},  # type: ignore[dict-item]
        )
    assert (refused.value.param, refused.value.code) == ("metadata.a", "invalid_type")
    with pytest.raises(openai.NotFoundError, match="No batch found"):
        client.batches.retrieve("batch_nonsense")


def test_an_idempotency_key_makes_one_batch(client: OpenAI) -> None:
    key = {"Idempotency-Key": "sdk-batch"}
    both = [
        client.batches.create(
            input_file_id="file-" + "1" * 32, endpoint="/v1/embeddings", completion_window="24h", extra_headers=key
        )
        for _ in range(2)
    ]
    assert both[0].id == both[1].id


def test_the_output_may_expire(client: OpenAI) -> None:
    batch = client.batches.create(
        input_file_id="file-" + "2" * 32,
        endpoint="/v1/embeddings",
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert batch.status == "validating"


def test_requests_in_the_body(client: OpenAI) -> None:
    requests = [{"custom_id": str(n), "body": {"model": "tiny", "input": "x"}} for n in range(3)]
    batch = client.post(
        "/batches", body={"endpoint": "/v1/embeddings", "requests": requests}, cast_to=openai.types.Batch
    )
    assert batch.status == "validating" and batch.input_file_id.startswith("file-")
    assert batch.input_file_id in [file.id for file in client.files.list()]
