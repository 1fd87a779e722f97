"""Facts of openai_api.md, section 3.4: the lines of output and error files."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
import orjson
import pytest

from models.embedding import Input
from providers.fake import fake_vectors
from tests.contract.openai.openai_server import DAY_S, HTTP_MODEL, MODEL, WIDTH, OpenAIServer, line, lines


def vector(value: Input, width: int = WIDTH) -> list[float]:
    found: list[float] = fake_vectors([value], width, "up")[0].tolist()
    return found


def body_of(output: dict[str, Any]) -> dict[str, Any]:
    assert output["error"] is None and output["response"]["status_code"] == 200
    found: dict[str, Any] = output["response"]["body"]
    return found


def test_a_line_of_output(openai_server: OpenAIServer) -> None:
    """success: id batch_req_ and 32 hex, custom_id, a response with status_code 200, request_id of 32 hex, and body."""
    batch = openai_server.run([line("first", "hello")])
    (output,) = openai_server.lines_of(batch.output_file_id)
    assert set(output) == {"id", "custom_id", "response", "error"}
    assert re.fullmatch("batch_req_[0-9a-f]{32}", output["id"]) and output["custom_id"] == "first"
    assert set(output["response"]) == {"status_code", "request_id", "body"}
    assert re.fullmatch("[0-9a-f]{32}", output["response"]["request_id"])
    body = body_of(output)
    assert {"object", "model", "data", "usage"} <= set(body) and (body["object"], body["model"]) == ("list", MODEL)
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": body["data"][0]["embedding"]}]
    np.testing.assert_array_equal(
        np.array(body["data"][0]["embedding"], np.float32), np.array(vector("hello"), np.float32)
    )
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0


def test_each_line_has_an_id_of_its_own(openai_server: OpenAIServer) -> None:
    """Ids: those of lines and of requests differ from line to line; the order is that of the input here."""
    batch = openai_server.run(lines(50))
    outputs = openai_server.lines_of(batch.output_file_id)
    assert [each["custom_id"] for each in outputs] == [f"r{n}" for n in range(50)]
    assert len({each["id"] for each in outputs}) == 50 == len({each["response"]["request_id"] for each in outputs})


def test_the_name_of_the_output_file(openai_server: OpenAIServer) -> None:
    """2.1 content-disposition: attachment; filename="<batch id>_output.jsonl"; and its purpose is batch_output."""
    batch = openai_server.run([line("a"), line("b", "poison")])
    for file_id, name in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
        assert file_id is not None
        file = openai_server.client.files.retrieve(file_id)
        assert (file.purpose, file.status, file.filename) == (
            "batch_output",
            "processed",
            f"{batch.id}_{name}.jsonl",
        )
        content = openai_server.client.files.content(file_id)
        assert content.response.headers["content-disposition"] == f'attachment; filename="{batch.id}_{name}.jsonl"'
        assert content.response.headers["content-type"] == "application/octet-stream"
        assert len(content.content) == file.bytes


@pytest.mark.parametrize("seconds", [None, 3600])
def test_output_that_expires(openai_server: OpenAIServer, seconds: int | None) -> None:
    """output_expires_after: counted from the creation of the output file; 30 days unless it says otherwise."""
    fields = {} if seconds is None else {"output_expires_after": {"anchor": "created_at", "seconds": seconds}}
    batch = openai_server.run([line("a")], **fields)
    assert batch.output_file_id is not None
    file = openai_server.client.files.retrieve(batch.output_file_id)
    assert file.expires_at == file.created_at + (seconds or 30 * DAY_S)


def test_a_refused_request(openai_server: OpenAIServer) -> None:
    """request refused: in the error file; response.status_code 400 with body.error, and `error` is filled as well."""
    batch = openai_server.run([line("good"), line("bad", "poison"), line("empty", ""), line("odd", ["a", 1])])
    assert [each["custom_id"] for each in openai_server.lines_of(batch.output_file_id)] == ["good"]
    failures = openai_server.lines_of(batch.error_file_id)
    assert [each["custom_id"] for each in failures] == ["bad", "empty", "odd"]
    for failure in failures:
        assert set(failure) == {"id", "custom_id", "response", "error"}
        assert re.fullmatch("batch_req_[0-9a-f]{32}", failure["id"])
        assert failure["response"]["status_code"] == 400
        error = failure["response"]["body"]["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
        assert error["message"] and (failure["error"]["code"], failure["error"]["message"]) == (
            error["code"],
            error["message"],
        )
    counts = batch.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (4, 1, 3)


def test_the_body_of_a_line_is_that_of_a_sync_call(openai_server: OpenAIServer) -> None:
    """body = normal embeddings response: lists, token arrays, dimensions, base64 and models side by side."""
    requests = [
        line("list", ["a", "b", "c"]),
        line("tokens", [1, 2, 3]),
        line("token lists", [[1, 2], [3]]),
        line("narrow", "a", dimensions=4),
        line("packed", ["a", "b"], encoding_format="base64"),
        line("other", "a", model="short"),
        line("http", ["a", "b"], model=HTTP_MODEL),
    ]
    outputs = openai_server.lines_of(openai_server.run(requests).output_file_id)
    assert [each["custom_id"] for each in outputs] == [each["custom_id"] for each in requests]
    for request, output in zip(requests, outputs, strict=True):
        fields = {"encoding_format": "float", **request["body"]}
        reply = openai_server.client.embeddings.with_raw_response.create(**fields).http_response.json()
        body = body_of(output)
        assert body["model"] == reply["model"] and len(body["data"]) == len(reply["data"])
        for mine, sync in zip(body["data"], reply["data"], strict=True):
            assert (mine["index"], mine["object"], type(mine["embedding"])) == (
                sync["index"],
                "embedding",
                type(sync["embedding"]),
            )
            np.testing.assert_array_equal(floats(mine["embedding"]), floats(sync["embedding"]))


def floats(embedding: Any) -> Any:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4")
    return np.array(embedding, np.float32)


def test_blank_lines_and_line_ends(openai_server: OpenAIServer) -> None:
    """3.4 blank lines are skipped; CRLF, a BOM and a last line without its end are no fault."""
    first, second, last = (orjson.dumps(line(name)) for name in "abc")
    content = b"\xef\xbb\xbf" + first + b"\r\n\r\n" + second + b"\r\n\n" + last
    file = openai_server.client.files.create(file=("a.jsonl", content), purpose="batch")
    batch = openai_server.wait_for(openai_server.create_for(file.id), "completed")
    assert [each["custom_id"] for each in openai_server.lines_of(batch.output_file_id)] == ["a", "b", "c"]
