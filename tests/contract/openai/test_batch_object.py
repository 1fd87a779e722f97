"""Facts of openai_api.md, sections 3.2 and 3.3: the batch object, and its statuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openai.types import Batch

from tests.contract.openai.openai_server import DAY_S, ENDPOINT, HTTP_MODEL, OpenAIServer, line, lines

KEYS = [
    *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status"),
    *("output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at"),
    *("completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts"),
    *("usage", "metadata"),
]
INSTANTS = [key for key in KEYS if key.endswith("_at")]


def counts(batch: Batch) -> tuple[int, int, int]:
    found = batch.request_counts
    assert found is not None
    return found.total, found.completed, found.failed


def set_instants(batch: Batch) -> list[str]:
    return [name for name in INSTANTS if getattr(batch, name) is not None]


def test_a_batch_that_has_not_begun(openai_server: OpenAIServer) -> None:
    """3.2: at creation expires_at is created_at + 86400, request_counts are 0, each other key is an explicit null."""
    with openai_server.stopped_workers(), openai_server.recorder() as recorder:
        file = openai_server.upload([line("a")])
        batch = recorder.client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        seen = openai_server.client.batches.retrieve(batch.id)
    document: dict[str, Any] = recorder.replies[-1].json()
    assert set(KEYS) <= set(document)
    assert re.fullmatch("batch_[0-9a-f]{32}", batch.id)
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", ENDPOINT, "24h")
    assert (batch.input_file_id, batch.status) == (file.id, "validating")
    assert batch.expires_at == batch.created_at + DAY_S
    assert counts(batch) == (0, 0, 0) == counts(seen)
    nulls = set(KEYS) - {"id", "object", "endpoint", "input_file_id", "completion_window", "status", "created_at"}
    nulls -= {"expires_at", "request_counts", "usage"}
    assert {name: document[name] for name in nulls} == dict.fromkeys(nulls)


def test_counts_climb(openai_server: OpenAIServer) -> None:
    """3.2: total appears with in_progress, completed climbs during the run, output_file_id only with completed."""
    seen: list[Batch] = []
    with openai_server.slow_upstream():
        batch = openai_server.create(
            [*lines(16, model=HTTP_MODEL), *lines(16, prefix="s", text="slow", model=HTTP_MODEL)]
        )
        seen.append(openai_server.wait_for_count(batch, 16))
    running = seen[0]
    assert running.status == "in_progress" and counts(running)[0] == 32
    assert 16 <= counts(running)[1] < 32
    assert (running.output_file_id, running.error_file_id, running.completed_at) == (None, None, None)
    openai_server.client.batches.cancel(batch.id)


def test_a_completed_batch(openai_server: OpenAIServer) -> None:
    """3.3: validating, in_progress, finalizing, completed, and an instant for each; error_file_id null when clean."""
    batch = openai_server.run(lines(20))
    assert set_instants(batch) == ["created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at"]
    instants = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert instants == sorted(each or 0 for each in instants)
    assert counts(batch) == (20, 20, 0)
    assert batch.error_file_id is None and batch.errors is None and batch.output_file_id is not None


def test_usage(openai_server: OpenAIServer) -> None:
    """3.2: usage has input, output and total tokens with their details; no output tokens for embeddings."""
    batch = openai_server.run(lines(20))
    usage = batch.usage
    assert usage is not None
    assert usage.input_tokens == usage.total_tokens > 0 and usage.output_tokens == 0
    assert usage.input_tokens_details.cached_tokens == 0 == usage.output_tokens_details.reasoning_tokens
    billed = [each["response"]["body"]["usage"] for each in openai_server.lines_of(batch.output_file_id)]
    assert sum(each["total_tokens"] for each in billed) == usage.total_tokens


def test_a_batch_whose_requests_all_fail(openai_server: OpenAIServer) -> None:
    """3.2: it is completed, with output_file_id null and an error file."""
    batch = openai_server.run([line("a", "poison"), line("b", "poison too")])
    assert batch.output_file_id is None and counts(batch) == (2, 0, 2)
    assert [each["custom_id"] for each in openai_server.lines_of(batch.error_file_id)] == ["a", "b"]


def test_a_failed_batch(openai_server: OpenAIServer) -> None:
    """3.3: failed means that the validation found errors: nothing ran."""
    batch = openai_server.wait_for(openai_server.create([line("a"), line("b", model=None)]), "failed")
    assert set_instants(batch) == ["created_at", "expires_at", "failed_at"]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.errors is not None and batch.errors.object == "list" and len(batch.errors.data or []) == 1


def test_an_expired_batch(openai_server: OpenAIServer) -> None:
    """3.3: the window is over: expired; what had run is in the output file, the rest in the error file."""
    with openai_server.slow_upstream():
        batch = openai_server.create(
            [*lines(16, model=HTTP_MODEL), *lines(3, prefix="s", text="slow", model=HTTP_MODEL)]
        )
        openai_server.wait_for_count(batch, 16)
        openai_server.expire(batch)
        ended = openai_server.wait_for(batch, "expired")
    assert ended.expired_at is not None and ended.completed_at is None
    assert [each["custom_id"] for each in openai_server.lines_of(ended.output_file_id)] == [f"r{n}" for n in range(16)]
    errors = openai_server.lines_of(ended.error_file_id)
    assert [each["custom_id"] for each in errors] == ["s0", "s1", "s2"]
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}
    message = "This request could not be executed before the completion window expired."
    assert {each["error"]["message"] for each in errors} == {message}
    assert {None} == {each["response"] for each in errors}


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_batch_stays_as_it_ended(openai_server: OpenAIServer, status: str) -> None:
    """3.3: completed and failed are final."""
    batch = openai_server.create([line("a")] if status == "completed" else [line("a", model=None)])
    ended = openai_server.wait_for(batch, status)
    assert openai_server.client.batches.retrieve(batch.id) == ended
    assert [each for each in openai_server.client.batches.list(limit=20) if each.id == batch.id] == [ended]
