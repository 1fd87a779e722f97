"""Facts of openai_api.md, section 3.5: what a validation reports in errors.data[]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from openai.types import Batch

from tests.contract.openai.openai_server import OpenAIServer, line, without

NOT_JSON = "This line is not parseable as valid JSON."


def errors_of(server: OpenAIServer, requests: Sequence[dict[str, Any] | bytes]) -> list[tuple[Any, ...]]:
    """(code, line, param) of each error. The first line of a file must be JSON: a good one stands before the others."""
    batch = server.wait_for(server.create([line("the first"), *requests]), "failed")
    return [(each.code, each.line, each.param) for each in data_of(batch)]


def data_of(batch: Batch) -> Any:
    assert batch.errors is not None and batch.errors.data
    return batch.errors.data


def test_a_line_that_is_no_json(openai_server: OpenAIServer) -> None:
    """invalid_json_line: the 1-based line, and OpenAI's message."""
    batch = openai_server.wait_for(openai_server.create([line("a"), b"{no json", b"[1]", b"\xff\xfe"]), "failed")
    assert [(each.code, each.line) for each in data_of(batch)] == [("invalid_json_line", n) for n in (2, 3, 4)]
    assert all(each.message.startswith(NOT_JSON) for each in data_of(batch))


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
def test_a_missing_field_of_a_line(openai_server: OpenAIServer, name: str) -> None:
    """missing_required_parameter: one entry for each bad line, all lines are reported."""
    requests = [without(line("a"), name), line("b"), without(line("c"), name)]
    batch = openai_server.wait_for(openai_server.create(requests), "failed")
    assert [(each.code, each.line, each.param) for each in data_of(batch)] == [
        ("missing_required_parameter", number, name) for number in (1, 3)
    ]
    assert {each.message for each in data_of(batch)} == {f"Missing required parameter: '{name}'."}


def test_another_url(openai_server: OpenAIServer) -> None:
    """invalid_url: param url."""
    batch = openai_server.wait_for(openai_server.create([line("a"), {**line("b"), "url": "/v1/other"}]), "failed")
    (error,) = data_of(batch)
    assert (error.code, error.line, error.param) == ("invalid_url", 2, "url")
    assert error.message == "The URL provided for this request does not match the batch endpoint."


def test_an_unknown_model(openai_server: OpenAIServer) -> None:
    """model_not_found: param body.model, "The provided model 'x' is not supported by the Batch API."."""
    batch = openai_server.wait_for(openai_server.create([line("a"), line("b", model="nothing")]), "failed")
    (error,) = data_of(batch)
    assert (error.code, error.line, error.param) == ("model_not_found", 2, "body.model")
    assert error.message.startswith("The provided model 'nothing' is not supported by the Batch API.")


def test_no_model(openai_server: OpenAIServer) -> None:
    """invalid_request: param body.model, "Model parameter is required."."""
    batch = openai_server.wait_for(openai_server.create([line("a", model=None)]), "failed")
    (error,) = data_of(batch)
    assert (error.code, error.line, error.param) == ("invalid_request", 1, "body.model")
    assert error.message == "Model parameter is required."


def test_a_stream(openai_server: OpenAIServer) -> None:
    """streaming_unsupported: param body.stream; one such line fails a batch whose other lines are good."""
    batch = openai_server.wait_for(openai_server.create([line("a"), line("b", stream=True)]), "failed")
    (error,) = data_of(batch)
    assert (error.code, error.line, error.param) == ("streaming_unsupported", 2, "body.stream")
    assert error.message.startswith("Streaming is not supported in the Batch API")


def test_a_repeated_custom_id(openai_server: OpenAIServer) -> None:
    """duplicate_custom_id: at the line that repeats it."""
    found = errors_of(openai_server, [line("a"), line("b"), line("a"), line("the first")])
    assert [(code, number) for code, number, _ in found] == [("duplicate_custom_id", 4), ("duplicate_custom_id", 5)]


def test_types_of_fields(openai_server: OpenAIServer) -> None:
    """The types of fields are checked as well: body an object, custom_id a text."""
    found = errors_of(openai_server, [{**line("a"), "body": "text"}, {**line("b"), "custom_id": 1}])
    assert [(number, param) for _, number, param in found] == [(2, "body"), (3, "custom_id")]


def test_all_lines_are_reported(openai_server: OpenAIServer) -> None:
    """Faults of all kinds in one file, each with its line, in the order of the lines; nothing runs."""
    requests: list[dict[str, Any] | bytes] = [
        b"{",
        {**line("b"), "url": "/v1/other"},
        b"",
        line("c"),
        line("d", model="nothing"),
        line("e", stream=True),
        without(line("f"), "method"),
    ]
    assert errors_of(openai_server, requests) == [
        ("invalid_json_line", 2, None),
        ("invalid_url", 3, "url"),
        ("model_not_found", 6, "body.model"),
        ("streaming_unsupported", 7, "body.stream"),
        ("missing_required_parameter", 8, "method"),
    ]


def test_the_first_thousand_errors(openai_server: OpenAIServer) -> None:
    """Beyond OpenAI: the first 1,000 errors are listed and all are counted."""
    bad = [line(f"b{n}", model="nothing") for n in range(1005)]
    batch = openai_server.wait_for(openai_server.create([line("a"), *bad]), "failed")
    assert [each.line for each in data_of(batch)] == [*range(2, 1002)]
    assert (batch.model_extra or {})["error_count"] == 1005


def test_good_lines_run_where_that_is_wanted(openai_server: OpenAIServer) -> None:
    """Beyond OpenAI: metadata.embedmill_validation = lenient: bad lines fail alone, in the error file."""
    requests: list[dict[str, Any] | bytes] = [line("a"), b"{", line("b", model="nothing"), line("a"), line("c")]
    batch = openai_server.run(requests, metadata={"embedmill_validation": "lenient"})
    assert [each["custom_id"] for each in openai_server.lines_of(batch.output_file_id)] == ["a", "c"]
    errors = openai_server.lines_of(batch.error_file_id)
    codes = [each["error"]["code"] for each in errors]
    assert codes == ["invalid_json_line", "model_not_found", "duplicate_custom_id"]
    counts = batch.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (5, 2, 3)
