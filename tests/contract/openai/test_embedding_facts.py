"""Facts of openai_api.md, section 1, that are marked SDK, PROBE, CONF or LIVE: headers and errors of each call."""

from __future__ import annotations

import re
from typing import Any

import openai
import orjson
import pytest

from tests.contract.openai.openai_server import MODEL, OpenAIServer, line

REQUEST_ID = re.compile("req_[0-9a-f]{32}")


def test_the_body_of_the_sdk(openai_server: OpenAIServer) -> None:
    """1.1: the order on the wire is model, input, user, dimensions, encoding_format."""
    with openai_server.recorder() as recorder:
        reply = recorder.client.embeddings.create(
            encoding_format="float", dimensions=4, user="u", input="a", model=MODEL
        )
    sent: dict[str, Any] = orjson.loads(recorder.requests[0].content)
    assert list(sent) == ["model", "input", "user", "dimensions", "encoding_format"]
    assert len(reply.data[0].embedding) == 4


def test_the_keys_of_an_answer(openai_server: OpenAIServer) -> None:
    """1.2: object, model, data and usage; object, index and embedding in each item, in the order of the inputs."""
    with openai_server.recorder() as recorder:
        recorder.client.embeddings.create(model=MODEL, input=["a", "b", "c"])
    document = recorder.replies[0].json()
    assert {"object", "model", "data", "usage"} <= set(document) and document["object"] == "list"
    assert all(set(item) == {"object", "index", "embedding"} for item in document["data"])
    assert [item["index"] for item in document["data"]] == [0, 1, 2]
    assert set(document["usage"]) == {"prompt_tokens", "total_tokens"}


def test_errors_as_the_sdk_shows_them(openai_server: OpenAIServer) -> None:
    """1.3: .code, .param, .type, .body and .request_id of an APIError."""
    with pytest.raises(openai.BadRequestError) as refused:
        openai_server.client.embeddings.create(model=MODEL, input=["a", ""])
    error = refused.value
    assert error.body == {
        "message": error.body["message"],  # type: ignore[index]
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    assert error.type == "invalid_request_error" and error.param == "input[1]" and error.code
    assert error.request_id == error.response.headers["x-request-id"]


def test_request_ids(openai_server: OpenAIServer) -> None:
    """1.4: x-request-id is req_ and 32 hex digits on each answer, and the _request_id of results."""
    client = openai_server.client
    file = openai_server.upload([line("a")])
    batch = openai_server.create_for(file.id)
    ids = [each._request_id or "" for each in (file, batch, client.batches.retrieve(batch.id))]
    assert all(REQUEST_ID.fullmatch(each) for each in ids) and len(set(ids)) == 3


def test_headers_that_the_sdk_may_send(openai_server: OpenAIServer) -> None:
    """1.4: OpenAI-Organization, OpenAI-Project, X-Client-Request-Id and x-stainless-* are no reason to refuse."""
    headers = {"X-Client-Request-Id": "mine"}
    with openai_server.recorder(organization="org-a", project="proj_b", default_headers=headers) as recorder:
        recorder.client.embeddings.create(model=MODEL, input="a")
        recorder.client.batches.list(limit=1)
    for request, reply in zip(recorder.requests, recorder.replies, strict=True):
        assert request.headers["openai-organization"] == "org-a" and request.headers["openai-project"] == "proj_b"
        assert request.headers["x-stainless-retry-count"] == "0" and "x-stainless-read-timeout" in request.headers
        assert reply.status_code == 200 and REQUEST_ID.fullmatch(reply.headers["x-request-id"])


@pytest.mark.parametrize(("text", "calls"), [("broken", 3), ("poison", 1)])
def test_what_the_sdk_sends_again(openai_server: OpenAIServer, text: str, calls: int) -> None:
    """1.4: by default 2 retries of a 5xx, and none of a 400; each says how many came before it."""
    recorder = openai_server.recorder(max_retries=openai.DEFAULT_MAX_RETRIES)
    with recorder, pytest.raises(openai.APIStatusError):
        recorder.client.embeddings.create(model=MODEL, input=text)
    sent = [request.headers["x-stainless-retry-count"] for request in recorder.requests]
    assert sent == [str(number) for number in range(calls)]
    assert len({reply.headers["x-request-id"] for reply in recorder.replies}) == calls


def test_classes_of_errors(openai_server: OpenAIServer) -> None:
    """1.4: 400 BadRequest, 401 Authentication, 404 NotFound, 409 Conflict."""
    client = openai_server.client
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="sk-nobody").files.list()
    assert unknown.value.code == "invalid_api_key" and unknown.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-nothing")
    with pytest.raises(openai.BadRequestError):
        client.batches.list(limit=101)
    batch = openai_server.run([line("a")])
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
