"""DashScope, Snowflake and Perplexity by golden pairs: APIs that give an index with each vector."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pybase64
import pytest

from models.embedding import Route
from models.errors import (
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from providers.base import Provider
from providers.dashscope import DashScopeProvider
from providers.perplexity import PerplexityProvider
from providers.snowflake import SnowflakeProvider
from tests.contract.adapter_calls import HEADERS, INPUT_TYPES, batch, error_of, read, route, sent

DASHSCOPE = DashScopeProvider()
SNOWFLAKE = SnowflakeProvider()
PERPLEXITY = PerplexityProvider()
BEARER = {**HEADERS, "authorization": "Bearer k-1"}
ROWS = [[1.0, -0.5, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]]


def by_dashscope(**account: Any) -> Route:
    return route(DASHSCOPE, DASHSCOPE.traits.base_url, "text-embedding-v4", **account)


def by_snowflake(**account: Any) -> Route:
    return route(SNOWFLAKE, SNOWFLAKE.traits.base_url.format(account="org-acc"), "snowflake-arctic-embed-m", **account)


def by_perplexity(**account: Any) -> Route:
    return route(PERPLEXITY, PERPLEXITY.traits.base_url, "pplx-embed-v1-0.6b", **account)


# --- DashScope --------------------------------------------------------------------------------------------------------


def dashscope_body(**parameters: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "text-embedding-v4", "input": {"texts": ["a", "b"]}}
    return {**body, "parameters": parameters} if parameters else body


def test_dashscope_whole_request() -> None:
    request = DASHSCOPE.request(batch(["Zürich"], width=2, input_type="query"), by_dashscope())
    assert (request.method, request.url) == (
        "POST",
        "https://dashscope.aliyuncs.com/api/v1/services/embeddings/text-embedding/text-embedding",
    )
    assert dict(request.headers) == BEARER
    assert (
        request.body
        == (
            '{"model":"text-embedding-v4","input":{"texts":["Zürich"]},"parameters":{"dimension":2,"text_type":"query"}}'
        ).encode()
    )
    assert DASHSCOPE.traits.limits.inputs_per_call == 10


def test_dashscope_plain() -> None:
    assert sent(DASHSCOPE, batch(), by_dashscope()) == dashscope_body()


@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_dashscope_input_type(input_type: str) -> None:
    expected = {"text_type": input_type} if input_type in ("query", "document") else {}
    assert sent(DASHSCOPE, batch(input_type=input_type), by_dashscope()) == dashscope_body(**expected)


@pytest.mark.parametrize("truncate", ["none", "end"])
@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_dashscope_has_no_fields_for_the_rest(truncate: str, encoding: str) -> None:
    call = batch(truncate=truncate, user="u")
    assert sent(DASHSCOPE, call, replace(by_dashscope(), encoding=encoding)) == dashscope_body()


@pytest.mark.parametrize("section", ["main", "dashscope"])
def test_dashscope_options_are_parameters(section: str) -> None:
    options = {section: {"instruct": "I", "text_type": "document", "model": "x", "input": {}}}
    body = sent(DASHSCOPE, batch(provider_options=options, input_type="query"), by_dashscope())
    assert body == dashscope_body(instruct="I", text_type="query")
    assert sent(DASHSCOPE, batch(), by_dashscope(body={"instruct": "I"})) == dashscope_body(instruct="I")


@pytest.mark.parametrize("field", ["dimension", "output_type"])
def test_dashscope_options_never_change_the_form_of_the_reply(field: str) -> None:
    options = {"dashscope": {field: "sparse"}}
    assert sent(DASHSCOPE, batch(provider_options=options), by_dashscope()) == dashscope_body()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "InvalidParameter", UpstreamRejected),
        (401, "InvalidApiKey", UpstreamAuthFailed),
        (429, "Throttling.RateQuota", UpstreamRateLimited),
        (429, "Throttling.AllocationQuota", UpstreamRateLimited),
        (500, "InternalError", UpstreamUnavailable),
    ],
)
def test_dashscope_errors(status: int, code: str, kind: type[UpstreamError]) -> None:
    document = {"code": code, "message": "m", "request_id": "r"}
    assert type(error_of(DASHSCOPE, status, document)) is kind
    with pytest.raises(kind) as refused:
        read(DASHSCOPE, {**document, "status_code": status}, batch(), by_dashscope())
    assert refused.value.status == status
    with pytest.raises(UpstreamUnavailable) as refused:
        read(DASHSCOPE, document, batch(), by_dashscope())
    assert refused.value.status == 502


# --- Snowflake --------------------------------------------------------------------------------------------------------

SNOWFLAKE_BODY = {"model": "snowflake-arctic-embed-m", "text": ["a", "b"]}


def test_snowflake_whole_request() -> None:
    request = SNOWFLAKE.request(batch(["Zürich"]), by_snowflake())
    assert (request.method, request.url) == (
        "POST",
        "https://org-acc.snowflakecomputing.com/api/v2/cortex/inference:embed",
    )
    token_type = {"x-snowflake-authorization-token-type": "PROGRAMMATIC_ACCESS_TOKEN"}
    assert dict(request.headers) == {**BEARER, **token_type}
    assert request.body == '{"model":"snowflake-arctic-embed-m","text":["Zürich"]}'.encode()


def test_snowflake_token_type_of_the_account() -> None:
    request = SNOWFLAKE.request(batch(), by_snowflake(settings={"token_type": "KEYPAIR_JWT"}))
    assert request.headers["x-snowflake-authorization-token-type"] == "KEYPAIR_JWT"


@pytest.mark.parametrize("input_type", [None, *INPUT_TYPES])
def test_snowflake_has_no_fields_for_the_rest(input_type: str | None) -> None:
    call = batch(width=2, input_type=input_type, truncate="end", user="u")
    for encoding in ("base64", "float"):
        assert sent(SNOWFLAKE, call, replace(by_snowflake(), encoding=encoding)) == SNOWFLAKE_BODY


@pytest.mark.parametrize("section", ["main", "snowflake"])
def test_snowflake_options(section: str) -> None:
    options = {section: {"extra": 1, "text": ["y"], "model": "z"}}
    assert sent(SNOWFLAKE, batch(provider_options=options), by_snowflake()) == {**SNOWFLAKE_BODY, "extra": 1}


@pytest.mark.parametrize("nested", [True, False])
def test_snowflake_vectors_are_nested_or_flat(nested: bool) -> None:
    data = [{"index": index, "embedding": [row] if nested else row} for index, row in enumerate(ROWS)]
    embedded = read(SNOWFLAKE, {"data": data, "model": "served"}, batch(), by_snowflake())
    assert embedded.vectors.tolist() == ROWS and embedded.upstream_model == "served"


@pytest.mark.parametrize("embedding", [[ROWS[0], ROWS[1]], [ROWS[0], None], [[]], [], [None], [[ROWS[0]]]])
def test_snowflake_several_vectors_or_none_for_one_input(embedding: object) -> None:
    data = [{"index": 0, "embedding": [ROWS[0]]}, {"index": 1, "embedding": embedding}]
    with pytest.raises(UpstreamProtocolError):
        read(SNOWFLAKE, {"data": data}, batch(), by_snowflake())


# --- Perplexity -------------------------------------------------------------------------------------------------------


def perplexity_body(**fields: Any) -> dict[str, Any]:
    return {"model": "pplx-embed-v1-0.6b", "input": ["a", "b"], "encoding_format": "base64_int8", **fields}


def int8(*numbers: int) -> str:
    return pybase64.b64encode(np.array(numbers, dtype=np.int8).tobytes()).decode()


def test_perplexity_whole_request() -> None:
    request = PERPLEXITY.request(batch(["Zürich"]), by_perplexity())
    assert (request.method, request.url) == ("POST", "https://api.perplexity.ai/v1/embeddings")
    assert dict(request.headers) == BEARER
    assert request.body == (
        '{"encoding_format":"base64_int8","model":"pplx-embed-v1-0.6b","input":["Zürich"]}'.encode()
    )


@pytest.mark.parametrize("encoding", ["base64", "float"])
@pytest.mark.parametrize("input_type", [None, *INPUT_TYPES])
def test_perplexity_fields(encoding: str, input_type: str | None) -> None:
    by = replace(by_perplexity(), encoding=encoding)
    assert sent(PERPLEXITY, batch(width=2, input_type=input_type), by) == perplexity_body(dimensions=2)
    assert sent(PERPLEXITY, batch(truncate="end", user="u"), by) == perplexity_body()


@pytest.mark.parametrize("section", ["main", "perplexity"])
def test_perplexity_options(section: str) -> None:
    options = {section: {"extra": 1, "encoding_format": "base64_binary", "model": "z"}}
    assert sent(PERPLEXITY, batch(provider_options=options), by_perplexity()) == perplexity_body(extra=1)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (int8(3, 4, 0, 0), [0.6, 0.8, 0, 0]),
        ("f4GAAA==", [127 / math.sqrt(48642), -127 / math.sqrt(48642), -128 / math.sqrt(48642), 0]),
        (int8(0, 0, 0, -1), [0, 0, 0, -1]),
    ],
)
def test_perplexity_vectors_are_int8_and_become_unit_vectors(text: str, row: list[float]) -> None:
    embedded = read(PERPLEXITY, {"data": [{"index": 0, "embedding": text}]}, batch(["a"]), by_perplexity())
    assert embedded.vectors.dtype == np.float32
    assert embedded.vectors[0] == pytest.approx(row, abs=1e-6)


@pytest.mark.parametrize(
    "embedding",
    [pybase64.b64encode(np.ones(4, "<f4").tobytes()).decode(), int8(1, 2, 3), "AQIDBA", "AQI DBA==", "", [1, 2, 3, 4]],
)
def test_perplexity_vectors_that_are_none(embedding: object) -> None:
    """float32, another width, no padding, a space, nothing, numbers."""
    with pytest.raises(UpstreamProtocolError):
        read(PERPLEXITY, {"data": [{"index": 0, "embedding": embedding}]}, batch(["a"]), by_perplexity())


@pytest.mark.parametrize(
    ("status", "kind"), [(401, UpstreamAuthFailed), (429, UpstreamRateLimited), (400, UpstreamRejected)]
)
def test_perplexity_errors(status: int, kind: type[UpstreamError]) -> None:
    assert type(error_of(PERPLEXITY, status, {"error": {"message": "m", "type": "t", "code": status}})) is kind


# --- All --------------------------------------------------------------------------------------------------------------


def dashscope_reply(embeddings: list[Any], indexes: list[Any], usage: Any) -> dict[str, Any]:
    items = [_item("text_index", index, row) for index, row in zip(indexes, embeddings, strict=True)]
    return {"output": {"embeddings": items}, "usage": usage, "request_id": "r"}


def snowflake_reply(embeddings: list[Any], indexes: list[Any], usage: Any) -> dict[str, Any]:
    nested = [None if row is None else [row] for row in embeddings]
    return {"data": [_item("index", index, row) for index, row in zip(indexes, nested, strict=True)], "usage": usage}


def perplexity_reply(embeddings: list[Any], indexes: list[Any], usage: Any) -> dict[str, Any]:
    """Null stands for a number that int8 has not."""
    texts = [None if row is None or None in row else int8(*(int(4 * number) for number in row)) for row in embeddings]
    return {"data": [_item("index", index, row) for index, row in zip(indexes, texts, strict=True)], "usage": usage}


def _item(name: str, index: Any, embedding: Any) -> dict[str, Any]:
    return {"embedding": embedding} if index == "absent" else {name: index, "embedding": embedding}


REPLIES: list[tuple[Provider, Route, Any]] = [
    (DASHSCOPE, by_dashscope(), dashscope_reply),
    (SNOWFLAKE, by_snowflake(), snowflake_reply),
    (PERPLEXITY, by_perplexity(), perplexity_reply),
]
each_reply = pytest.mark.parametrize(("provider", "by", "reply"), REPLIES, ids=lambda each: type(each).__name__)


@each_reply
@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"total_tokens": 6}, 6),
        ({"prompt_tokens": 5, "total_tokens": 6}, 5),
        ({"total_tokens": 0}, None),
        ({"total_tokens": "6"}, None),
        ({}, None),
        (None, None),
        (7, None),
    ],
)
def test_usage(provider: Provider, by: Route, reply: Any, usage: object, tokens: int | None) -> None:
    assert read(provider, reply(ROWS, [0, 1], usage), batch(), by).tokens == tokens


@each_reply
@pytest.mark.parametrize("indexes", [["absent", "absent"], [None, None], [1, 0]])
def test_the_order_of_the_inputs(provider: Provider, by: Route, reply: Any, indexes: list[Any]) -> None:
    listed = ROWS[::-1] if indexes == [1, 0] else ROWS
    embedded = read(provider, reply(listed, indexes, None), batch(), by)
    assert np.sign(embedded.vectors).tolist() == np.sign(ROWS).tolist()


@each_reply
@pytest.mark.parametrize("indexes", [[0, 0], [1, 2], [0, None], ["0", "1"], [True, False], [0.0, 1.0], [-1, 0]])
def test_indexes_that_are_not_each_inputs(provider: Provider, by: Route, reply: Any, indexes: list[Any]) -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(provider, reply(ROWS, indexes, {"total_tokens": 6}), batch(), by)
    assert refused.value.reported_tokens == 6


@each_reply
@pytest.mark.parametrize("row", [[1.0, None, 0, 0], None, [0, 0, 0, 0], [1.0, 0, 0]])
def test_a_bad_vector_is_named_by_its_input(provider: Provider, by: Route, reply: Any, row: Any) -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(provider, reply([row, ROWS[0]], [1, 0], {"total_tokens": 6}), batch(), by)
    assert (refused.value.offending_position, refused.value.reported_tokens) == (1, 6)


@each_reply
@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_count(provider: Provider, by: Route, reply: Any, count: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(provider, reply([ROWS[0]] * count, list(range(count)), None), batch(), by)


@each_reply
def test_an_error_with_a_status_of_success(provider: Provider, by: Route, reply: Any) -> None:
    with pytest.raises(UpstreamRateLimited):
        read(provider, {"error": {"code": 429, "message": "slow down"}}, batch(), by)
