"""Lines of a batch file: what is a request, and what is said of what is none."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine.batches.line_faults import BatchBody
from engine.batches.lines import BatchLine, LineFault, parse_batch_line
from engine.embedding.request_body import EmbeddingRequest

LEFT_OUT = object()
BASE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings"}


def line(body: Any = LEFT_OUT, **frame: Any) -> bytes:
    fields = BASE | {"body": {"model": "m", "input": "x"} if body is LEFT_OUT else body} | frame
    return json.dumps({name: value for name, value in fields.items() if value is not LEFT_OUT}).encode()


def body(**fields: Any) -> bytes:
    values = {"model": "m", "input": "x"} | fields
    return line({name: value for name, value in values.items() if value is not LEFT_OUT})


def request_of(data: bytes, default_model: str | None = None) -> BatchLine:
    found = parse_batch_line(data, default_model)
    assert isinstance(found, BatchLine), found
    return found


def fault_of(data: bytes) -> LineFault:
    found = parse_batch_line(data, None)
    assert isinstance(found, LineFault), found
    return found


def test_the_body_of_a_line_has_the_fields_of_a_sync_request() -> None:
    of_line = {field.name: field.type for field in msgspec.structs.fields(BatchBody)}
    of_sync = {field.name: field.type for field in msgspec.structs.fields(EmbeddingRequest)}
    assert of_line.pop("model") == str | None
    assert of_sync.pop("model") is str
    assert of_line == of_sync


def test_a_request_with_all_fields() -> None:
    data = body(dimensions=8, encoding_format="base64", user="u", input_type="query", truncate="end")
    found = request_of(data)
    assert (found.custom_id, found.model, found.inputs, found.is_list) == ("a", "m", ["x"], False)
    assert (found.dimensions, found.encoding, found.user) == (8, "base64", "u")
    assert (found.options().input_type, found.options().truncate, found.options().user) == ("query", "end", None)


@pytest.mark.parametrize(
    ("value", "inputs", "is_list"),
    [
        ("text", ["text"], False),
        (["a", "b"], ["a", "b"], True),
        ([1, 2, 3], [[1, 2, 3]], False),
        ([[1], [2, 3]], [[1], [2, 3]], True),
        (["a\u2028b"], ["a\u2028b"], True),
        (list(range(5000)), [list(range(5000))], False),
    ],
)
def test_the_kinds_of_input(value: Any, inputs: Any, is_list: bool) -> None:
    found = request_of(body(input=value))
    assert (found.inputs, found.is_list) == (inputs, is_list)


def test_a_body_without_a_model_takes_the_one_of_the_batch() -> None:
    assert request_of(body(model=LEFT_OUT), "outer").model == "outer"
    assert request_of(body(model=None), "outer").model == "outer"
    assert request_of(body(), "outer").model == "m"


def test_the_options_key_depends_on_model_and_options_alone() -> None:
    plain = request_of(body()).options_key
    assert len(plain) == 16
    same = (
        body(user="u"),
        body(encoding_format="base64"),
        body(truncate="none"),
        body(truncate=None),
        body(providerOptions={}),
    )
    assert {request_of(data).options_key for data in same} == {plain}
    others = [
        body(model="n"),
        body(dimensions=8),
        body(input_type="query"),
        body(truncate="end"),
        body(providerOptions={"p": {"a": 1}}),
    ]
    assert len({request_of(data).options_key for data in others} | {plain}) == 6
    one, other = {"p": {"a": 1, "b": 2}, "q": {}}, {"q": {}, "p": {"b": 2, "a": 1}}
    assert request_of(body(providerOptions=one)).options_key == request_of(body(providerOptions=other)).options_key


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (line(custom_id=LEFT_OUT), "missing_required_parameter", "custom_id"),
        (line(custom_id=None), "missing_required_parameter", "custom_id"),
        (line(custom_id=7), "invalid_type", "custom_id"),
        (line(custom_id=""), "invalid_value", "custom_id"),
        (line(custom_id="é" * 300), "invalid_value", "custom_id"),
        (line(method=LEFT_OUT), "missing_required_parameter", "method"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url=LEFT_OUT), "missing_required_parameter", "url"),
        (line(url="/v1/chat/completions"), "invalid_url", "url"),
        (line(url=[1]), "invalid_type", "url"),
        (line(None), "missing_required_parameter", "body"),
        (line("text"), "invalid_type", "body"),
        (body(model=LEFT_OUT), "invalid_request", "body.model"),
        (body(model=None), "invalid_request", "body.model"),
        (body(model=1), "invalid_type", "body.model"),
        (body(stream=True), "streaming_unsupported", "body.stream"),
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (b'{"custom_id":"a","custom_id":"b",' + line()[1:], "duplicate_key", "custom_id"),
    ],
)
def test_faults_of_the_frame_make_an_invalid_request_line(data: bytes, code: str, param: str | None) -> None:
    fault = fault_of(data)
    assert (fault.code, fault.param, fault.is_invalid_request_line) == (code, param, True)


def test_the_words_of_openai() -> None:
    assert fault_of(b"nonsense").message == "This line is not parseable as valid JSON."
    assert fault_of(line(custom_id=LEFT_OUT)).message == "Missing required parameter: 'custom_id'."
    assert fault_of(line(url="/x")).message == "The URL provided for this request does not match the batch endpoint."
    assert fault_of(body(model=LEFT_OUT)).message == "Model parameter is required."


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (body(input=LEFT_OUT), "missing_required_parameter", "input"),
        (body(input=None), "invalid_type", "input"),
        (body(input=[]), "empty_array", "input"),
        (body(input=["a", [1]]), "invalid_type", "input[1]"),
        (body(input=[1, "a"]), "invalid_type", "input[1]"),
        (body(input=[True]), "invalid_type", "input[0]"),
        (body(input=["x"] * 2049), "array_above_max_length", "input"),
        (body(dimensions=0), "invalid_value", "dimensions"),
        (body(dimensions="8"), "invalid_type", "dimensions"),
        (body(encoding_format="hex"), "invalid_value", "encoding_format"),
        (body(user="\0"), "invalid_value", "user"),
        (body(stream=False), "unknown_parameter", "stream"),
        (body(nonsense=1), "unknown_parameter", "nonsense"),
        (body(providerOptions={"p": {"a": "x" * 20_000}}), "invalid_value", "providerOptions"),
        (line()[:-2] + b',"input":"y"}}', "duplicate_key", "input"),
        (line()[:-2] + b',"\\u0069nput":"y"}}', "duplicate_key", "input"),
    ],
)
def test_faults_of_the_request_fail_only_the_line(data: bytes, code: str, param: str | None) -> None:
    fault = fault_of(data)
    assert (fault.code, fault.param, fault.is_invalid_request_line) == (code, param, False)
    assert (fault.custom_id, fault.status) == ("a", 400)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (line().replace(b'"x"', b'"\\ud800"'), "surrogate"),
        (line().replace(b'"x"', b'"\xff"'), "UTF-8"),
        (line()[:-1] + b',"other":"\xff"}', "UTF-8"),
        (line().replace(b'"x"', b"NaN"), "NaN"),
        (line()[:-2] + b',"providerOptions":{"p":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}}}", "nested"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (line()[:-2] + b',"dimensions":' + b"1" * 1_000_000 + b"}}", "thousand digits"),
        (line().replace(b'"x"', b"[" + b"1" * 1_000_000 + b"]"), "thousand digits"),
        (line()[:-1] + b',"other":-1' + b"1" * 1_000_000 + b"}", "thousand digits"),
    ],
)
def test_what_is_no_json_is_explained(data: bytes, reason: str) -> None:
    fault = fault_of(data)
    assert fault.code == "invalid_json_line"
    assert fault.message.startswith("This line is not parseable as valid JSON.")
    assert reason in fault.message


@pytest.mark.parametrize(
    "data",
    [
        body(input="[," + "1" * 5000),
        body(input='\\",' + "1" * 5000),
        line() + b"\r",
        line(extra={"a": [1, '"', "}"]}),
        body(input='a "quoted" \\ text'),
        body(user=None, dimensions=None),
        body(providerOptions={"p": {"a": {"b": "c"}}}),
        body(input="\U0001f600é"),
    ],
)
def test_odd_lines_that_are_requests(data: bytes) -> None:
    assert request_of(data).custom_id == "a"


def test_a_line_of_ten_megabytes() -> None:
    assert len(request_of(body(input="x" * 10_000_000)).inputs[0]) == 10_000_000
