"""Facts of openai_api.md, section 0: what the official SDKs do that a server must be ready for."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import httpx2
import numpy as np
import openai
import orjson
import pytest
from openai import OpenAI

from providers.fake import fake_vectors
from tests.contract.openai.openai_server import MODEL, WIDTH, OpenAIServer, jsonl, line, lines

NAMES = itertools.count()
UNIX_2020, UNIX_2100 = 1_577_836_800, 4_102_444_800


def unique_name() -> str:
    return f"trap-{next(NAMES)}.jsonl"


@pytest.mark.parametrize("model", [MODEL, "only-floats"])
def test_base64_is_the_default_of_the_sdk(openai_server: OpenAIServer, model: str) -> None:
    """0.1: base64 is sent when the caller gave none, and honoured, also where the upstream speaks floats."""
    with openai_server.recorder() as recorder:
        reply = recorder.client.embeddings.create(model=model, input=["a", "b"])
        floats = recorder.client.embeddings.create(model=model, input=["a", "b"], encoding_format="float")
    assert orjson.loads(recorder.requests[0].content)["encoding_format"] == "base64"
    packed = [item["embedding"] for item in recorder.replies[0].json()["data"]]
    assert [np.frombuffer(base64.b64decode(each), "<f4").tolist() for each in packed] == [
        item.embedding for item in reply.data
    ]
    np.testing.assert_array_equal(
        np.array([item.embedding for item in floats.data], np.float32),
        np.array([item.embedding for item in reply.data], np.float32),
    )


def test_base64_is_little_endian_float32(client: OpenAI) -> None:
    """0.2: no header, len(bytes)/4 is the dimension; an explicit base64 is handed over as a string."""
    reply: Any = client.embeddings.with_raw_response.create(model=MODEL, input="a", encoding_format="base64")
    packed = base64.b64decode(reply.http_response.json()["data"][0]["embedding"])
    assert len(packed) / 4 == WIDTH and packed == fake_vectors(["a"], WIDTH, "up").astype("<f4").tobytes()


def test_no_answer_has_empty_data(client: OpenAI) -> None:
    """0.3: an empty data list raises ValueError in the SDK: an empty list of inputs is refused instead."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input=[])
    assert refused.value.param == "input"


@pytest.mark.parametrize("path", ["/files", "/batches", "/webhook_endpoints"])
def test_lists_have_has_more(openai_server: OpenAIServer, path: str) -> None:
    """0.4: every list endpoint sends has_more, also when it is false."""
    openai_server.client.files.create(file=(unique_name(), jsonl([line("a")])), purpose="batch")
    client = openai_server.client
    page: Any = client.get(path, cast_to=object, options={"params": {"limit": 1}})
    assert page["object"] == "list" and isinstance(page["has_more"], bool)
    after = page["data"][-1]["id"] if page["data"] else None
    rest: Any = client.get(
        path, cast_to=object, options={"params": {"limit": 1, **({"after": after} if after else {})}}
    )
    assert isinstance(rest["has_more"], bool)


def test_pages_follow_the_last_id(openai_server: OpenAIServer) -> None:
    """0.5: the next page is asked for with after=data[-1].id alone; limit, order and purpose are repeated."""
    made = [openai_server.client.files.create(file=(unique_name(), b"x"), purpose="user_data").id for _ in range(5)]
    with openai_server.recorder() as recorder:
        seen = [file.id for file in recorder.client.files.list(limit=2, order="asc", purpose="user_data")]
    assert seen[-5:] == made and len(set(seen)) == len(seen)
    assert len(recorder.replies) == (len(seen) + 1) // 2
    for before, request in zip(recorder.replies, recorder.requests[1:], strict=False):
        query = dict(request.url.params)
        assert query == {"limit": "2", "order": "asc", "purpose": "user_data", "after": before.json()["data"][-1]["id"]}


def test_a_conflict_is_not_retried(openai_server: OpenAIServer) -> None:
    """0.6: 409 is retried by the SDK unless x-should-retry: false comes with it: then there is 1 call."""
    batch = openai_server.run([line("a")])
    with openai_server.recorder(max_retries=2) as recorder, pytest.raises(openai.ConflictError) as refused:
        recorder.client.batches.cancel(batch.id)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(recorder.requests) == 1


def test_advice_is_at_most_a_minute(openai_server: OpenAIServer) -> None:
    """0.7: Retry-After above 120 s (Python) and above 60 s (Node) is not obeyed: ours is never above 60."""
    with pytest.raises(openai.APIStatusError) as refused:
        openai_server.client.embeddings.create(model="busy", input="a")
    assert refused.value.status_code in (429, 503)
    assert 1 <= float(refused.value.response.headers["retry-after"]) <= 60


class LosesFirstReply(httpx2.BaseTransport):
    """The server has answered; the caller never sees the first answer."""

    def __init__(self) -> None:
        self._inner = httpx2.HTTPTransport()
        self.retry_counts: list[str] = []
        self.idempotency_keys: list[str | None] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.retry_counts.append(request.headers["x-stainless-retry-count"])
        self.idempotency_keys.append(request.headers.get("idempotency-key"))
        reply = self._inner.handle_request(request)
        if len(self.retry_counts) == 1:
            reply.read()
            raise httpx2.ReadTimeout("the answer was lost", request=request)
        return reply

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("key", [None, "one-key"])
def test_a_retried_post_makes_no_duplicate(openai_server: OpenAIServer, key: str | None) -> None:
    """0.8: no idempotency header by default, yet POSTs are retried; x-stainless-retry-count is the only hint."""
    transport, name = LosesFirstReply(), unique_name()
    headers = {} if key is None else {"Idempotency-Key": f"{key}-{name}"}
    with OpenAI(
        base_url=openai_server.url,
        api_key=openai_server.stack.key,
        max_retries=2,
        http_client=httpx2.Client(transport=transport),
    ) as losing:
        file = losing.files.create(file=(name, jsonl([line("a")])), purpose="batch", extra_headers=headers)
        transport.retry_counts.clear()
        batch = losing.batches.create(
            input_file_id=file.id,
            endpoint="/v1/embeddings",
            completion_window="24h",
            extra_headers={each: f"{value}-batch" for each, value in headers.items()},
        )
    assert transport.retry_counts == ["0", "1"]
    assert [each is None for each in transport.idempotency_keys] == [key is None] * 4
    assert [each.id for each in openai_server.client.files.list(limit=50) if each.filename == name] == [file.id]
    recent = openai_server.client.batches.list(limit=50).data
    assert [each.id for each in recent if each.input_file_id == file.id] == [batch.id]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("get", "/nothing", 404),
        ("get", "/files/file-nothing/nothing", 404),
        ("delete", "/batches", 405),
        ("put", "/files", 405),
        ("post", "/batches", 400),
        ("post", "/files", 415),
        ("get", "/batches/batch_nothing", 404),
        ("get", "/files?limit=none", 400),
    ],
)
def test_every_error_is_in_the_envelope(client: OpenAI, method: str, path: str, status: int) -> None:
    """0.9: the SDK reads message, type, param and code of {"error": …} alone; `detail` would leave all empty."""
    with pytest.raises(openai.APIStatusError) as refused:
        getattr(client, method)(path, cast_to=object)
    error = refused.value
    assert error.status_code == status and error.type == "invalid_request_error"
    document = error.response.json()
    assert set(document) == {"error"} and set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["message"] and document["error"] == error.body


def test_content_is_sent_whatever_is_accepted(openai_server: OpenAIServer) -> None:
    """0.10: files.content() sends Accept: application/binary, and gets its bytes."""
    content = jsonl([line("a")])
    with openai_server.recorder() as recorder:
        file = recorder.client.files.create(file=(unique_name(), content), purpose="batch")
        assert recorder.client.files.content(file.id).content == content
    assert recorder.requests[-1].headers["accept"] == "application/binary"


def test_a_cancel_has_no_body(openai_server: OpenAIServer) -> None:
    """0.11: POST …/cancel has an empty body, with or without a content type; GET drops Content-Type."""
    with openai_server.recorder() as recorder, openai_server.stopped_workers():
        batch = recorder.client.batches.create(
            input_file_id=openai_server.upload([line("a")]).id, endpoint="/v1/embeddings", completion_window="24h"
        )
        assert recorder.client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        assert recorder.client.batches.retrieve(batch.id).id == batch.id
        cancel, get = recorder.requests[-2:]
        bare = httpx2.post(str(cancel.url), headers={"authorization": f"Bearer {openai_server.stack.key}"})
    assert cancel.content == b"" and "content-type" not in get.headers
    assert "content-type" not in bare.request.headers and bare.json()["id"] == batch.id


def test_instants_are_whole_seconds(openai_server: OpenAIServer) -> None:
    """0.12: the SDK's types say int: unix seconds, never text or fractions."""
    file = openai_server.upload(lines(2))
    batch = openai_server.wait_for(openai_server.create_for(file.id), "completed")
    instants = [file.created_at, file.expires_at, batch.created_at, batch.in_progress_at, batch.finalizing_at]
    instants += [batch.completed_at, batch.expires_at]
    assert all(type(each) is int and UNIX_2020 < each < UNIX_2100 for each in instants), instants


def test_the_user_agent_of_the_sdk(openai_server: OpenAIServer) -> None:
    """0.14: openai-python 3 is built on httpx2; its user agent is OpenAI/Python and its version."""
    with openai_server.recorder() as recorder:
        recorder.client.models.list()
    assert recorder.requests[0].headers["user-agent"] == f"OpenAI/Python {openai.__version__}"
    assert recorder.replies[0].status_code == 200
