"""Nomic, Cloudflare and watsonx by golden pairs: APIs that give the vectors in the order of the texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.embedding import Route
from models.errors import (
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers.base import Provider
from providers.cloudflare import CloudflareProvider
from providers.nomic import NomicProvider
from providers.watsonx import WatsonxProvider
from tests.contract.adapter_calls import HEADERS, INPUT_TYPES, batch, error_of, read, route, sent
from tests.contract.provider_matrix import OBSERVED, Observe

NOMIC = NomicProvider()
CLOUDFLARE = CloudflareProvider()
WATSONX = WatsonxProvider()
BEARER = {**HEADERS, "authorization": "Bearer k-1"}
ROW = [1.0, -0.5, 0.25, 0.0]
BGE = "@cf/baai/bge-base-en-v1.5"


def by_nomic(**account: Any) -> Route:
    return route(NOMIC, NOMIC.traits.base_url, "nomic-embed-text-v1.5", **account)


def by_cloudflare(model: str = BGE, **account: Any) -> Route:
    return route(CLOUDFLARE, CLOUDFLARE.traits.base_url.format(account_id="acc-1"), model, **account)


def by_watsonx(**account: Any) -> Route:
    settings = {"settings": {"project_id": "p-1"}, **account}
    return route(WATSONX, WATSONX.traits.base_url.format(region="eu-de"), "ibm/slate-125m-english-rtrvr", **settings)


# --- Nomic ------------------------------------------------------------------------------------------------------------


def nomic_body(**fields: Any) -> dict[str, Any]:
    return {"model": "nomic-embed-text-v1.5", "texts": ["a", "b"], **fields}


def test_nomic_whole_request() -> None:
    request = NOMIC.request(batch(["Zürich"]), by_nomic())
    assert (request.method, request.url) == ("POST", "https://api-atlas.nomic.ai/v1/embedding/text")
    assert dict(request.headers) == BEARER
    assert request.body == '{"model":"nomic-embed-text-v1.5","texts":["Zürich"]}'.encode()


def test_nomic_width() -> None:
    assert sent(NOMIC, batch(width=2), by_nomic()) == nomic_body(dimensionality=2)


@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_nomic_input_type(input_type: str) -> None:
    words = {"query": "search_query", "document": "search_document"}
    words |= {name: name for name in ("classification", "clustering")}
    expected = {"task_type": words[input_type]} if input_type in words else {}
    assert sent(NOMIC, batch(input_type=input_type), by_nomic()) == nomic_body(**expected)


def test_nomic_truncation() -> None:
    assert sent(NOMIC, batch(truncate="end"), by_nomic()) == nomic_body(long_text_mode="truncate")
    assert sent(NOMIC, batch(truncate="none"), by_nomic()) == nomic_body() and NOMIC.traits.cuts_silently


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_nomic_sends_no_user_and_has_one_encoding(encoding: str) -> None:
    assert sent(NOMIC, batch(user="u"), replace(by_nomic(), encoding=encoding)) == nomic_body()


@pytest.mark.parametrize("section", ["main", "nomic"])
def test_nomic_options(section: str) -> None:
    options = {section: {"long_text_mode": "mean", "task_type": "x", "texts": ["y"], "model": "z"}}
    body = sent(NOMIC, batch(provider_options=options, input_type="query"), by_nomic())
    assert body == nomic_body(long_text_mode="mean", task_type="search_query")


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "total_tokens": 6}, 5),
        ({"total_tokens": 6}, 6),
        ({"prompt_tokens": -1}, None),
        ([], None),
        (None, None),
    ],
)
def test_nomic_reply(usage: object, tokens: int | None) -> None:
    reply = {"embeddings": [ROW, ROW], "model": "served", "usage": usage}
    embedded = read(NOMIC, reply, batch(), by_nomic())
    assert embedded.vectors.tolist() == [ROW, ROW]
    assert (embedded.tokens, embedded.upstream_model) == (tokens, "served")


def test_nomic_error_in_a_reply_of_success() -> None:
    with pytest.raises(UpstreamProtocolError):
        read(NOMIC, {"detail": "Internal error"}, batch(), by_nomic())
    assert isinstance(error_of(NOMIC, 402, {"detail": "no credit"}), UpstreamAuthFailed)
    assert isinstance(error_of(NOMIC, 422, {"detail": [{"loc": ["body", "texts"], "msg": "m"}]}), UpstreamRejected)


# --- Cloudflare -------------------------------------------------------------------------------------------------------


def test_cloudflare_whole_request() -> None:
    request = CLOUDFLARE.request(batch(["Zürich"]), by_cloudflare())
    assert (request.method, request.url) == (
        "POST",
        "https://api.cloudflare.com/client/v4/accounts/acc-1/ai/run/@cf/baai/bge-base-en-v1.5",
    )
    assert dict(request.headers) == BEARER
    assert request.body == '{"text":["Zürich"]}'.encode()


def test_cloudflare_model_cannot_leave_the_path() -> None:
    assert CLOUDFLARE.request(batch(), by_cloudflare("@cf/x?y#z")).url.endswith("/ai/run/@cf/x%3Fy%23z")


@pytest.mark.parametrize("input_type", [None, *INPUT_TYPES])
def test_cloudflare_has_no_fields_for_the_rest(input_type: str | None) -> None:
    call = batch(width=2, input_type=input_type, truncate="end", user="u")
    for encoding in ("base64", "float"):
        assert sent(CLOUDFLARE, call, replace(by_cloudflare(), encoding=encoding)) == {"text": ["a", "b"]}


@pytest.mark.parametrize("section", ["main", "cloudflare"])
def test_cloudflare_options(section: str) -> None:
    options = {section: {"pooling": "cls", "text": ["y"]}}
    assert sent(CLOUDFLARE, batch(provider_options=options), by_cloudflare()) == {"pooling": "cls", "text": ["a", "b"]}


def cloudflare_reply(data: object, **fields: object) -> dict[str, Any]:
    return {"result": {"shape": [2, 4], "data": data}, "success": True, "errors": [], "messages": [], **fields}


def test_cloudflare_reply() -> None:
    embedded = read(CLOUDFLARE, cloudflare_reply([ROW, ROW]), batch(), by_cloudflare())
    assert embedded.vectors.tolist() == [ROW, ROW] and (embedded.tokens, embedded.tokens_doubt) == (None, None)
    assert CLOUDFLARE.traits.usage == "none"


@pytest.mark.parametrize("result", [None, {}, {"shape": [2, 4], "data": [ROW, ROW]}])
@pytest.mark.parametrize(
    ("number", "kind", "status"),
    [
        (5007, UpstreamMisconfigured, 400),
        (3036, UpstreamAuthFailed, 429),
        (3040, UpstreamRateLimited, 429),
        (3006, UpstreamTooLarge, 413),
        (3007, UpstreamTimeout, 408),
        (10000, UpstreamAuthFailed, 401),
        (1, UpstreamUnavailable, 502),
        ("x", UpstreamUnavailable, 502),
    ],
)
def test_cloudflare_error_in_a_reply_of_success(
    result: object, number: object, kind: type[UpstreamError], status: int
) -> None:
    failed = {"result": result, "success": False, "errors": [{"code": number, "message": "m"}], "messages": []}
    with pytest.raises(kind) as refused:
        read(CLOUDFLARE, failed, batch(), by_cloudflare())
    assert refused.value.status == status


@pytest.mark.parametrize("errors", [None, [], [3], "x"])
def test_cloudflare_failure_without_an_error(errors: object) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(CLOUDFLARE, cloudflare_reply([ROW, ROW], success=False, errors=errors), batch(), by_cloudflare())


@pytest.mark.parametrize(
    ("status", "number", "kind"),
    [
        (400, 5007, UpstreamMisconfigured),
        (400, 5006, UpstreamRejected),
        (429, 3036, UpstreamAuthFailed),
        (429, 3040, UpstreamRateLimited),
        (403, 10000, UpstreamAuthFailed),
        (503, 3040, UpstreamOverloaded),
    ],
)
def test_cloudflare_errors_by_their_number(status: int, number: int, kind: type[UpstreamError]) -> None:
    document = {"result": None, "success": False, "errors": [{"code": number, "message": "m"}]}
    assert type(error_of(CLOUDFLARE, status, document)) is kind


def test_cloudflare_errors_of_another_server_are_not_its_words() -> None:
    document = {"errors": [{"code": 10000, "message": "API key not valid"}]}
    assert type(error_of(CLOUDFLARE, 400, document)) is UpstreamRejected


# --- watsonx ----------------------------------------------------------------------------------------------------------


def watsonx_body(limit: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "model_id": "ibm/slate-125m-english-rtrvr",
        "inputs": ["a", "b"],
        "parameters": {"truncate_input_tokens": limit, **fields},
        "project_id": "p-1",
    }


def test_watsonx_whole_request() -> None:
    request = WATSONX.request(batch(["Zürich"]), by_watsonx())
    assert (request.method, request.url) == (
        "POST",
        "https://eu-de.ml.cloud.ibm.com/ml/v1/text/embeddings?version=2024-05-02",
    )
    assert dict(request.headers) == BEARER
    assert request.body == (
        '{"model_id":"ibm/slate-125m-english-rtrvr","inputs":["Zürich"],"parameters":{"truncate_input_tokens":0},'
        '"project_id":"p-1"}'.encode()
    )


@pytest.mark.provider_column("truncate", kind="watsonx")
def test_watsonx_cuts_at_the_limit_of_the_route(record_property: Observe) -> None:
    assert sent(WATSONX, batch(truncate="end"), by_watsonx()) == watsonx_body(512)
    longer = replace(by_watsonx(), limits=replace(WATSONX.traits.limits, tokens_per_input=8192))
    assert sent(WATSONX, batch(truncate="end"), longer) == watsonx_body(8192)
    assert sent(WATSONX, batch(truncate="none"), longer) == watsonx_body(0)
    record_property(OBSERVED + "truncate", "its field")


@pytest.mark.parametrize("input_type", [None, *INPUT_TYPES])
def test_watsonx_has_no_fields_for_the_rest(input_type: str | None) -> None:
    call = batch(width=2, input_type=input_type, user="u")
    for encoding in ("base64", "float"):
        assert sent(WATSONX, call, replace(by_watsonx(), encoding=encoding)) == watsonx_body()


@pytest.mark.parametrize("section", ["main", "watsonx"])
def test_watsonx_options_are_parameters(section: str) -> None:
    options = {section: {"return_options": {"token_count": True}, "truncate_input_tokens": 3, "inputs": ["y"]}}
    body = sent(WATSONX, batch(provider_options=options), by_watsonx())
    assert body == watsonx_body(return_options={"token_count": True})


@pytest.mark.parametrize(
    ("count", "tokens"), [({"input_token_count": 9}, 9), ({"input_token_count": -9}, None), ({}, None)]
)
def test_watsonx_reply(count: dict[str, Any], tokens: int | None) -> None:
    reply = {"model_id": "served", "results": [{"embedding": ROW, "input": "a"}, {"embedding": ROW}], **count}
    embedded = read(WATSONX, reply, batch(), by_watsonx())
    assert embedded.vectors.tolist() == [ROW, ROW]
    assert (embedded.tokens, embedded.upstream_model) == (tokens, "served")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "authentication_token_expired", UpstreamAuthFailed),
        (404, "model_not_supported", UpstreamMisconfigured),
        (400, "model_not_supported", UpstreamMisconfigured),
        (403, "token_quota_reached", UpstreamAuthFailed),
        (400, "invalid_input_argument", UpstreamRejected),
        (500, "internal", UpstreamUnavailable),
        (429, 7, UpstreamRateLimited),
    ],
)
def test_watsonx_errors(status: int, code: object, kind: type[UpstreamError]) -> None:
    document = {"errors": [{"code": code, "message": "m"}], "trace": "t", "status_code": status}
    error = error_of(WATSONX, status, document)
    assert type(error) is kind and (error.code == "upstream_quota") is (code == "token_quota_reached")
    with pytest.raises(kind) as refused:
        read(WATSONX, document, batch(), by_watsonx())
    assert refused.value.status == status


# --- All --------------------------------------------------------------------------------------------------------------

REPLIES: list[tuple[Provider, Route, Any]] = [
    (NOMIC, by_nomic(), lambda rows: {"embeddings": rows, "usage": {"prompt_tokens": 5}}),
    (CLOUDFLARE, by_cloudflare(), cloudflare_reply),
    (WATSONX, by_watsonx(), lambda rows: {"results": [{"embedding": row} for row in rows], "input_token_count": 5}),
]
each_reply = pytest.mark.parametrize(("provider", "by", "reply"), REPLIES, ids=lambda each: type(each).__name__)


@each_reply
@pytest.mark.parametrize("row", [[1.0, None, 0, 0], None, [0, 0, 0, 0], [1.0, 0, 0]])
def test_a_bad_vector_is_named_and_its_tokens_are_counted(provider: Provider, by: Route, reply: Any, row: Any) -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(provider, reply([ROW, row]), batch(), by)
    assert refused.value.offending_position == 1
    assert refused.value.reported_tokens == (5 if provider.traits.usage == "tokens" else None)


@each_reply
@pytest.mark.parametrize("rows", [[], [ROW], [ROW] * 3, [ROW, ["1", 0, 0, 0]], [ROW, [[1, 0, 0, 0]]], [None, None]])
def test_what_is_no_reply(provider: Provider, by: Route, reply: Any, rows: Any) -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(provider, reply(rows), batch(), by)
    assert refused.value.offending_position is None


@each_reply
def test_the_section_of_the_account(provider: Provider, by: Route, reply: Any) -> None:
    body = sent(provider, batch(), replace(by, account=replace(by.account, body={"extra": 1}, headers={"x-a": "b"})))
    assert body.get("parameters", body)["extra"] == 1
