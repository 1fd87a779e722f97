"""The inline form: whatever the order of keys and the cuts of the stream, the same lines or the same refusal."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from engine.batches.batch_request import BatchRequest
from engine.batches.inline import FRAME_BYTES, InlineBody
from engine.batches.lines import BatchLine, parse_batch_line
from models.errors import RequestError

MAX_LINE = 1 << 20
REQUESTS = [
    {"custom_id": "a", "body": {"model": "m", "input": 'x, ["] }{ \\'}},
    {"body": {"input": ["p", "q"], "providerOptions": {"x": {"y": [1, {"z": []}]}}}, "custom_id": "b\n\u2028"},
    {"custom_id": "c", "body": {"input": [[1, 2], [3]]}, "method": "POST", "url": "/v1/embeddings"},
]
BODY = {"endpoint": "/v1/embeddings", "metadata": {"a": "b,[", "c": "d"}, "requests": REQUESTS, "model": "outer"}


def read(data: bytes, rng: random.Random | None = None, *, max_line_bytes: int = MAX_LINE) -> Any:
    """The lines and the request; of a refusal its code and param. `rng` cuts the stream."""
    body, lines, at = InlineBody(max_line_bytes=max_line_bytes), [], 0
    try:
        while at < len(data):
            size = len(data) if rng is None else rng.choice((1, 2, 3, 10, 100))
            lines += list(body.feed(data[at : at + size]))
            at += size
        return b"".join(lines), body.finish()
    except RequestError as error:
        return error.code, error.param


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("seed", range(20))
def test_keys_in_any_order_and_any_cuts(seed: int, indent: int | None) -> None:
    rng = random.Random(seed)
    keys = list(BODY)
    rng.shuffle(keys)
    data = b" \n" + json.dumps({key: BODY[key] for key in keys}, indent=indent, ensure_ascii=seed % 2 == 0).encode()
    lines, request = read(data + b"\r\n ", rng)
    assert isinstance(request, BatchRequest)
    assert (request.model, request.metadata, request.endpoint) == ("outer", BODY["metadata"], "/v1/embeddings")
    assert lines.count(b"\n") == 3 and lines.endswith(b"\n")
    parsed = [parse_batch_line(line, "outer") for line in lines.split(b"\n") if line]
    assert all(isinstance(each, BatchLine) for each in parsed), parsed
    assert [each.custom_id for each in parsed] == ["a", "b\n\u2028", "c"]
    for line, given in zip(lines.split(b"\n"), REQUESTS, strict=False):
        assert json.loads(line)["body"] == given["body"]


def test_a_body_of_the_file_form_has_no_lines() -> None:
    lines, request = read(b'{"input_file_id":"file-x","endpoint":"/v1/embeddings","completion_window":"24h"}')
    assert (lines, request.input_file_id, request.completion_window) == (b"", "file-x", "24h")


def wrap(requests: str) -> bytes:
    return b'{"endpoint":"/v1/embeddings","requests":[%b]}' % requests.encode()


GOOD = '{"custom_id":"a","body":{"input":"x"}}'


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b" ", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'"requests"', "invalid_json", None),
        (b"{}", "missing_required_parameter", "endpoint"),
        (b'{"endpoint":1}', "invalid_type", "endpoint"),
        (b'{"endpoint":"x","nonsense":1}', "unknown_parameter", "nonsense"),
        (b'{"endpoint":"x","endpoint":"y"}', "duplicate_key", "endpoint"),
        (b'{"endpoint":"x","\\u0065ndpoint":"y"}', "duplicate_key", "\\u0065ndpoint"),
        (b'{"endpoint":"x","metadata":{"a":"b","a":"c"}}', "duplicate_key", "metadata.a"),
        (b'{"endpoint":"x","requests":{}}', "invalid_type", "requests"),
        (b'{"endpoint":"x","requests":null}', "invalid_type", "requests"),
        (b'{"endpoint":"x" "model":"y"}', "invalid_json", None),
        (b'{"endpoint":"x",}', "invalid_json", None),
        (b'{"endpoint"}', "invalid_json", None),
        (b'{"endpoint":}', "invalid_json", None),
        (b'{"endpoint":"x"', "invalid_json", None),
        (b'{"endpoint":"x"}}', "invalid_json", None),
        (b'{"endpoint":"x"} y', "invalid_json", None),
        (b'{"endpoint":"x","metadata":{"a":"b"]}', "invalid_json", None),
        (b'{"requests":[]', "invalid_json", None),
        (b'{"requests":[' + GOOD.encode(), "invalid_json", None),
        (wrap(""), "empty_array", "requests"),
        (wrap(f"{GOOD},"), "invalid_json", None),
        (wrap(f",{GOOD}"), "invalid_json", None),
        (wrap(f"{GOOD},{GOOD}"), "duplicate_custom_id", "requests[1].custom_id"),
        (wrap("7"), "invalid_type", "requests[0]"),
        (wrap("null"), "invalid_type", "requests[0]"),
        (wrap('{"body":{}}'), "missing_required_parameter", "requests[0].custom_id"),
        (wrap('{"custom_id":"b"}'), "missing_required_parameter", "requests[0].body"),
        (wrap(GOOD + ',{"custom_id":5,"body":{}}'), "invalid_type", "requests[1].custom_id"),
        (wrap('{"custom_id":"","body":{}}'), "invalid_value", "requests[0].custom_id"),
        (wrap('{"custom_id":"%s","body":{}}' % ("x" * 513)), "invalid_value", "requests[0].custom_id"),
        (wrap('{"custom_id":"a","body":[]}'), "invalid_type", "requests[0].body"),
        (wrap('{"custom_id":"a","body":{},"x":1}'), "unknown_parameter", "requests[0].x"),
        (wrap('{"custom_id":"a","body":{},"url":"/v1/x"}'), "invalid_value", "requests[0].url"),
        (wrap('{"custom_id":"a","body":{},"method":"GET"}'), "invalid_value", "requests[0].method"),
        (wrap('{"custom_id":"a","custom_id":"b","body":{}}'), "duplicate_key", "requests[0].custom_id"),
        (wrap('{"custom_id":"a","body":{},"\\u0062ody":{}}'), "duplicate_key", "requests[0].body"),
        (wrap('{"custom_id":"a","body":{"input":"\n"}}'), "invalid_json", "requests[0]"),
        (wrap('{"custom_id":"a","body":{"input":NaN}}'), "invalid_json", "requests[0]"),
        (wrap('{"custom_id":"\\ud800","body":{}}'), "invalid_json", "requests[0]"),
        (wrap('{"custom_id":"a","body":{"x":\u00ff}}').replace(b"\xc3\xbf", b'"\xff"'), "invalid_json", "requests[0]"),
        (wrap('{"custom_id":"a","body":{"x":[1}}'), "invalid_json", None),
        (wrap('{"custom_id":"a","body":{"x":%s}}' % ("1" * 50_000)), "invalid_json", "requests[0]"),
        (b'{"metadata":{"a":"' + b"x" * 70_000 + b'"},"endpoint":"x"}', "invalid_value", "metadata"),
        (b"{" + b",".join(b'"k%d":1' % n for n in range(100)) + b"}", "invalid_json", None),
    ],
)
def test_what_is_refused(data: bytes, code: str, param: str | None) -> None:
    assert read(data) == (code, param)
    for seed in range(5):
        assert read(data, random.Random(seed)) == (code, param)


def test_deep_nesting_is_passed_on_to_the_validation_or_refused() -> None:
    deep = wrap('{"custom_id":"a","body":{"x":%s}}' % ("[" * 100_000 + "]" * 100_000))
    assert read(deep) == read(deep, random.Random(1)) == ("invalid_json", "requests[0]")


def test_a_request_that_is_too_long_is_named_before_it_is_kept() -> None:
    limit = 10_000 + FRAME_BYTES
    text = "x" * (10_000 - len(GOOD) + 1)
    fits = wrap(f'{GOOD},{{"custom_id":"b","body":{{"input":"{text}"}}}}')
    assert isinstance(read(fits, max_line_bytes=limit)[1], BatchRequest)
    long = fits.replace(b"xx", b"xxx", 1)
    assert read(long, max_line_bytes=limit) == ("payload_too_large", "requests[1]")
    assert read(long, random.Random(1), max_line_bytes=limit) == ("payload_too_large", "requests[1]")
    body = InlineBody(max_line_bytes=limit)
    list(body.feed(wrap("")[:-2] + b'{"custom_id":"'))
    with pytest.raises(RequestError):
        for _ in range(1000):
            list(body.feed(b"x" * 1000))
            assert body.buffered_bytes <= limit


def test_a_body_has_a_bounded_number_of_requests() -> None:
    body = InlineBody(max_line_bytes=MAX_LINE)
    list(body.feed(b'{"requests":['))
    with pytest.raises(RequestError) as refused:
        for low in range(0, 300_000, 10_000):
            items = b"".join(b'{"custom_id":"%d","body":{}},' % number for number in range(low, low + 10_000))
            list(body.feed(items))
            assert body.buffered_bytes <= 20_000_000
    assert (refused.value.code, refused.value.param) == ("too_many_requests", "requests")
