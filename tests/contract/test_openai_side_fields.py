"""Right vectors are taken whatever stands beside them; what they depend on is refused by the kind of what is wrong."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pybase64
import pytest

from models.embedding import Account, Batch, Limits, Options, Route
from models.errors import UpstreamError, UpstreamProtocolError, UpstreamRateLimited, UpstreamUnavailable
from providers.base import EmbeddingReply, UpstreamReply, check_embedded
from providers.openai import OpenAIProvider

WIDTH = 4
PROVIDER = OpenAIProvider()
ROWS = np.arange(1, 3 * WIDTH + 1, dtype="<f4").reshape(3, WIDTH)
TEXTS = ["red", "green", "blue"]
# Its bytes are 12, and 64 tokens may stand around each text.
MAX_TOKENS = 12 + 3 * 64


def route(width: int = WIDTH, **fields: Any) -> Route:
    account = Account("acme", "openai", "https://acme.test/v1", "sk-1")
    return Route(account, "m", width, Limits(), Decimal(1), alias="bge-m3", **fields)


def batch(width: int = WIDTH) -> Batch:
    return Batch(TEXTS, range(3), 3, width, Options(), bytes=12)


def items(*, base64: bool = True) -> list[dict[str, Any]]:
    return [
        {"index": i, "embedding": pybase64.b64encode_as_string(row.tobytes()) if base64 else row.tolist()}
        for i, row in enumerate(ROWS)
    ]


def parsed(document: Any, *, by: Route | None = None, asked: Batch | None = None) -> EmbeddingReply:
    by, asked = by or route(), asked or batch()
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    embedded = PROVIDER.parse_reply(UpstreamReply(200, {}, body), asked, by)
    check_embedded(embedded, embedded.vectors, asked, by)
    return embedded


def refused(document: Any, **how: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        parsed(document, **how)
    return raised.value


@pytest.mark.parametrize("base64", [True, False])
@pytest.mark.parametrize(
    ("side", "tokens"),
    [
        ({"usage": {"prompt_tokens": 6.0}}, 6),
        ({"usage": {"prompt_tokens": 6, "total_tokens": 6.0, "cost": {"a": [None]}}}, 6),
        ({"usage": {"prompt_tokens": False, "total_tokens": 6}}, 6),
        ({"usage": {"prompt_tokens": "6"}}, None),
        ({"usage": {"prompt_tokens": {}}}, None),
        ({"usage": {"prompt_tokens": None}}, None),
        ({"usage": False}, None),
        ({"usage": [6]}, None),
        ({"usage": "6"}, None),
        ({"usage": 6.0}, None),
        ({"usage": {}}, None),
        ({}, None),
        ({"model": {}}, None),
        ({"model": 3}, None),
        ({"model": [None], "object": None, "id": {"a": 1}, "created": "now", "warnings": [{}]}, None),
    ],
)
def test_fields_beside_the_vectors_may_be_of_any_type(side: dict[str, Any], tokens: int | None, base64: bool) -> None:
    embedded = parsed({"data": items(base64=base64), **side})
    assert embedded.vectors.tobytes() == ROWS.tobytes()
    assert embedded.tokens == tokens and embedded.upstream_model is None


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("write", [float, str, lambda index: f"0{index}"], ids=["float", "text", "zero first"])
def test_an_index_of_another_type_is_the_index(order: list[int], write: Any) -> None:
    data = [{**items()[i], "index": write(i)} for i in order]
    assert parsed({"data": data}).vectors.tobytes() == ROWS.tobytes()


@pytest.mark.parametrize("index", [None, {}, "first", True, 0.5])
def test_indexes_that_say_nothing_leave_the_order_of_the_reply(index: object) -> None:
    assert parsed({"data": [{**item, "index": index} for item in items()]}).vectors.tobytes() == ROWS.tobytes()


def test_a_server_that_leaves_out_zeros_leaves_out_the_first_index() -> None:
    data = items()
    del data[0]["index"]
    assert parsed({"data": data}).vectors.tobytes() == ROWS.tobytes()
    # Shuffled, nobody can know where the one without an index belongs.
    assert not refused({"data": [data[2], data[0], data[1]]}).route_fault


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (10**15, "more than"),
        (10**400, "more than"),
        (1e300, "more than"),
        (MAX_TOKENS + 1, "more than the 204"),
        (-3, "negative"),
        (2.5, "whole number"),
        (True, "whole number"),
        ("12", "whole number"),
    ],
)
def test_usage_that_cannot_be_is_not_believed(count: object, words: str) -> None:
    embedded = parsed({"data": items(), "usage": {"prompt_tokens": count}})
    assert embedded.tokens is None and words in (embedded.tokens_doubt or "")


@pytest.mark.parametrize("usage", [{"prompt_tokens": 0}, {"prompt_tokens": None}, None])
def test_a_server_that_does_not_count_is_no_reason_to_doubt(usage: object) -> None:
    embedded = parsed({"data": items(), "usage": usage})
    assert (embedded.tokens, embedded.tokens_doubt) == (None, None)


def test_as_many_tokens_as_the_inputs_can_have_are_believed() -> None:
    assert parsed({"data": items(), "usage": {"prompt_tokens": MAX_TOKENS}}).tokens == 204
    arrays = Batch([[1, 2], [3]], range(2), 3, WIDTH, Options())
    for count, believed in ((3 + 128, 131), (3 + 129, None)):
        reply = {"data": items()[:2], "usage": {"prompt_tokens": count}}
        assert parsed(reply, asked=arrays).tokens == believed


@pytest.mark.parametrize("base64", [True, False])
@pytest.mark.parametrize("width", [3, 6])
def test_a_wrong_width_is_the_routes_fault_and_says_what_to_set(base64: bool, width: int) -> None:
    rows = np.ones((3, width), dtype="<f4")
    data = [{"embedding": pybase64.b64encode_as_string(row.tobytes()) if base64 else row.tolist()} for row in rows]
    error = refused({"data": data, "usage": {"prompt_tokens": 9}})
    assert isinstance(error, UpstreamProtocolError) and error.route_fault and error.offending_position is None
    assert error.message == f"a vector of the reply holds {width} numbers where 4 were asked for"
    assert error.advice == f"set dimensions = {width} for models.bge-m3"
    assert error.reported_tokens == 9


def test_a_server_that_ignores_dimensions_needs_narrowing_here() -> None:
    error = refused({"data": items()}, asked=batch(2), by=route(WIDTH))
    assert error.route_fault and 'narrowing = "cut"' in error.advice and "models.bge-m3" in error.advice


@pytest.mark.parametrize("wrong", [[], [1.0], "AACAPw==", [1.0] * 9])
def test_one_vector_of_another_width_is_not_the_routes_fault(wrong: object) -> None:
    data = items(base64=isinstance(wrong, str))
    data[1]["embedding"] = wrong
    for order in ([0, 1, 2], [1, 2, 0]):
        error = refused({"data": [data[i] for i in order]})
        assert (error.route_fault, error.offending_position) == (False, 1)


@pytest.mark.parametrize("wrong", [None, [1.0, None, 3.0, 4.0], [1.0, float("nan"), 3.0, 4.0], [float("inf")] * 4])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_one_vector_without_numbers_names_its_input(wrong: object, order: list[int]) -> None:
    data = items(base64=False)
    data[1]["embedding"] = wrong
    error = refused({"data": [data[i] for i in order], "usage": {"prompt_tokens": 5}})
    assert isinstance(error, UpstreamProtocolError)
    assert (error.offending_position, error.route_fault, error.reported_tokens) == (1, False, 5)


def test_a_missing_vector_among_base64_names_its_input_and_none_where_all_are() -> None:
    data = items()
    del data[2]["embedding"]
    assert refused({"data": data}).offending_position == 2
    assert refused({"data": [{"index": i} for i in range(3)]}).offending_position is None
    zeros = pybase64.b64encode_as_string(bytes(16))
    assert refused({"data": [data[0], {"index": 1, "embedding": zeros}, items()[2]]}).offending_position == 1


MIXED = [*items()[:2], items(base64=False)[2]]


@pytest.mark.parametrize(
    "body",
    [
        b"<html><h1>It works!</h1></html>",
        b"\n <!DOCTYPE html><title>Sign in</title>",
        b'{"embeddings":[[1,2,3,4]]}',
        b"[[1,2,3,4]]",
        b'"ok"',
        b'{"data":{"embedding":[1]}}',
        json.dumps({"data": [{"embedding": [[1.0] * 4]}] * 3}).encode(),
        json.dumps({"data": [{"embedding": {"float": [1.0] * 4}}] * 3}).encode(),
        json.dumps({"data": MIXED}).encode(),
    ],
)
def test_a_reply_of_another_form_is_the_routes_fault(body: bytes) -> None:
    error = refused(body)
    assert isinstance(error, UpstreamProtocolError) and error.route_fault and error.advice


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"upstream connect error",
        json.dumps({"data": items()}).encode()[:-9],
        {"data": items()[:2]},
        {"data": [items()[0]] * 3},
        {"data": [{**item, "index": item["index"] + 1} for item in items()]},
    ],
)
def test_what_may_not_repeat_is_not_the_routes_fault(document: Any) -> None:
    error = refused(document)
    assert isinstance(error, UpstreamProtocolError) and not error.route_fault


def test_an_error_in_a_200_is_that_error() -> None:
    limited = refused({"error": {"code": 429, "message": "Rate limit reached. Please try again in 2s."}})
    assert isinstance(limited, UpstreamRateLimited) and limited.retry_after_s == 2.0
    assert isinstance(refused({"error": {"message": "oops"}}), UpstreamUnavailable)


def test_a_number_that_is_no_float_is_refused_in_the_one_way() -> None:
    body = b'{"data":[{"embedding":[1,2,3,' + b"9" * 400 + b'],"x":NaN}]}'
    with pytest.raises(UpstreamProtocolError):
        PROVIDER.parse_reply(UpstreamReply(200, {}, body), Batch(["a"], [0], 1, WIDTH, Options()))
