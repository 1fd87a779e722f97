"""The Gemini API by golden pairs: what is sent, and what replies and errors say."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import orjson
import pytest

from models.embedding import Route
from models.errors import UpstreamAuthFailed, UpstreamError, UpstreamProtocolError, UpstreamRateLimited
from providers.google import GoogleProvider
from tests.contract.adapter_calls import HEADERS, INPUT_TYPES, batch, error_of, read, route, sent

PROVIDER = GoogleProvider()
BASE = "https://generativelanguage.googleapis.com/v1beta"
TASK_TYPES = {
    "query": "RETRIEVAL_QUERY",
    "document": "RETRIEVAL_DOCUMENT",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
    "similarity": "SEMANTIC_SIMILARITY",
    "code_query": "CODE_RETRIEVAL_QUERY",
}


def by(model: str = "gemini-embedding-001", **account: Any) -> Route:
    return route(PROVIDER, BASE, model, **account)


def objects(*fields: tuple[str, Any], model: str = "gemini-embedding-001", texts: str = "ab") -> dict[str, Any]:
    """The body with an object for each text."""
    return {
        "requests": [
            {"model": f"models/{model}", **dict(fields), "content": {"parts": [{"text": text}]}} for text in texts
        ]
    }


def test_the_whole_request() -> None:
    request = PROVIDER.request(batch(["Zürich"]), by())
    assert (request.method, request.url) == ("POST", f"{BASE}/models/gemini-embedding-001:batchEmbedContents")
    assert dict(request.headers) == {**HEADERS, "x-goog-api-key": "k-1"}
    assert (
        request.body
        == '{"requests":[{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"Zürich"}]}}]}'.encode()
    )


def test_the_address_of_the_vendor() -> None:
    assert PROVIDER.traits.base_url == BASE and PROVIDER.traits.key_variables == ("GEMINI_API_KEY", "GOOGLE_API_KEY")
    assert PROVIDER.traits.limits.inputs_per_call == 100 and not PROVIDER.traits.narrow_is_unit


def test_a_model_that_already_has_its_prefix() -> None:
    prefixed = by("models/gemini-embedding-001")
    assert PROVIDER.request(batch(), prefixed) == PROVIDER.request(batch(), by())


def test_the_width_is_of_each_object() -> None:
    assert sent(PROVIDER, batch(width=2), by()) == objects(("outputDimensionality", 2))


@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_the_task_type_is_of_each_object(input_type: str) -> None:
    word = TASK_TYPES.get(input_type)
    fields = [("taskType", word)] if word else []
    assert sent(PROVIDER, batch(input_type=input_type), by()) == objects(*fields)


@pytest.mark.parametrize("model", ["gemini-embedding-2", "gemini-embedding-2-preview"])
def test_no_task_type_for_a_model_that_has_none(model: str) -> None:
    body = sent(PROVIDER, batch(input_type="query", width=2), by(model))
    assert body == objects(("outputDimensionality", 2), model=model)
    traits = PROVIDER.traits_of(model)
    assert traits.input_type is None and traits.narrow_is_unit
    assert PROVIDER.traits_of("gemini-embedding-001") == PROVIDER.traits


@pytest.mark.parametrize("options", [{"truncate": "none"}, {"truncate": "end"}, {"user": "u-1"}])
def test_what_it_has_no_field_for(options: dict[str, Any]) -> None:
    assert sent(PROVIDER, batch(**options), by()) == objects()


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_there_is_one_encoding(encoding: str) -> None:
    assert sent(PROVIDER, batch(), replace(by(), encoding=encoding)) == objects()


@pytest.mark.parametrize("section", ["main", "google"])
def test_options_go_into_each_object_and_never_override(section: str) -> None:
    options = {section: {"title": "T", "taskType": "FACT_VERIFICATION", "model": "x", "requests": [], "content": {}}}
    free = sent(PROVIDER, batch(provider_options=options), by())
    assert free == objects(("title", "T"), ("taskType", "FACT_VERIFICATION"))
    mapped = sent(PROVIDER, batch(provider_options=options, input_type="query"), by())
    assert mapped == objects(("title", "T"), ("taskType", "RETRIEVAL_QUERY"))


def test_the_fields_of_the_account_are_of_each_object() -> None:
    assert sent(PROVIDER, batch(), by(body={"title": "T", "model": "x"})) == objects(("title", "T"))


ROWS: list[dict[str, Any]] = [{"values": [1.0, -0.5, 0.25, 0.0]}, {"values": [0, 1, 0, 0]}]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"promptTokenCount": 5, "promptTokenDetails": [{"modality": "TEXT", "tokenCount": 5}]}, 5),
        ({"promptTokenCount": 5.0, "totalTokenCount": 9}, 5),
        ({"promptTokenDetails": [{"modality": "TEXT", "tokenCount": 3}, {"tokenCount": 4}]}, 7),
        ({"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 6}]}, 6),
        ({"promptTokenDetails": [{"modality": "TEXT"}]}, None),
        ({"promptTokenDetails": 3}, None),
        ({"promptTokenCount": 0}, None),
        ({"promptTokenCount": -1}, None),
        ({"promptTokenCount": "5"}, None),
        ({}, None),
        (None, None),
        ("none", None),
    ],
)
def test_usage_in_both_spellings_or_none(usage: object, tokens: int | None) -> None:
    embedded = read(PROVIDER, {"embeddings": ROWS, "usageMetadata": usage}, batch(), by())
    assert embedded.vectors.tolist() == [[1.0, -0.5, 0.25, 0.0], [0, 1, 0, 0]]
    assert (embedded.tokens, embedded.upstream_model) == (tokens, None)
    assert read(PROVIDER, {"embeddings": ROWS}, batch(), by()).tokens is None


@pytest.mark.parametrize(
    ("change", "position"),
    [
        ({"values": [1.0, None, 0, 0]}, 1),
        ({"values": None}, 1),
        ({}, 1),
        ({"values": [0, 0, 0, 0]}, 1),
        ({"values": [1, 0, 0]}, 1),
        ({"values": ["1", 0, 0, 0]}, None),
    ],
)
def test_a_bad_vector_is_named_and_its_tokens_are_counted(change: dict[str, Any], position: int | None) -> None:
    reply = {"embeddings": [ROWS[0], change], "usageMetadata": {"promptTokenCount": 5}}
    with pytest.raises(UpstreamProtocolError) as refused:
        read(PROVIDER, reply, batch(), by())
    assert refused.value.offending_position == position
    assert refused.value.reported_tokens == (None if position is None else 5)


def test_nan_is_no_number() -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(PROVIDER, b'{"embeddings":[{"values":[1,0,0,NaN]},{"values":[1,0,0,0]}]}', batch(), by())
    assert refused.value.offending_position == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_count(count: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(PROVIDER, {"embeddings": [ROWS[0]] * count}, batch(), by())


def test_one_vector_for_several_parts_is_no_reply() -> None:
    """embedContent's reply, with one `embedding`."""
    with pytest.raises(UpstreamProtocolError):
        read(PROVIDER, {"embedding": ROWS[0]}, batch(["a"]), by())


QUOTA: dict[str, Any] = {
    "error": {
        "code": 429,
        "status": "RESOURCE_EXHAUSTED",
        "message": "You exceeded your current quota, please check your plan and billing details.\nPlease retry in 12s.",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [{"quotaId": "EmbedContentRequestsPerMinutePerProjectPerModel-FreeTier"}],
            },
            {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"},
        ],
    }
}


def violated(*quotas: str) -> dict[str, Any]:
    error = copy.deepcopy(QUOTA)
    error["error"]["details"][0]["violations"] = [{"quotaId": quota} for quota in quotas]
    return error


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_rate_limit_says_when_to_come_again(wrapped: bool) -> None:
    error = error_of(PROVIDER, 429, [QUOTA] if wrapped else QUOTA)
    assert isinstance(error, UpstreamRateLimited)
    assert (error.retry_after_s, error.quota) == (34.07, "requests")


@pytest.mark.parametrize(
    ("quotas", "quota"),
    [
        (("EmbedContentInputTokensPerModelPerMinute-FreeTier",), "tokens"),
        (("EmbedContentInputTokensPerMinute", "EmbedContentRequestsPerMinute"), ""),
        ((), ""),
    ],
)
def test_which_quota_is_spent(quotas: tuple[str, ...], quota: str) -> None:
    error = error_of(PROVIDER, 429, violated(*quotas))
    assert isinstance(error, UpstreamRateLimited) and error.quota == quota


def test_the_wait_in_words_where_there_is_no_other() -> None:
    error = copy.deepcopy(QUOTA)
    del error["error"]["details"]
    assert error_of(PROVIDER, 429, error).retry_after_s == 12


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_quota_of_the_day_is_no_rate_limit(wrapped: bool) -> None:
    spent = violated("EmbedContentRequestsPerMinute", "EmbedContentRequestsPerDayPerProjectPerModel-FreeTier")
    error = error_of(PROVIDER, 429, [spent] if wrapped else spent)
    assert isinstance(error, UpstreamAuthFailed) and error.code == "upstream_quota"


def test_a_quota_that_only_a_message_quotes_is_none() -> None:
    quoting = violated()
    quoting["error"]["message"] = 'Resource exhausted: {"quotaId": "RequestsPerDay"}'
    assert isinstance(error_of(PROVIDER, 429, quoting), UpstreamRateLimited)


def test_a_bad_key_is_a_400() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    bad = {"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": [info]}}
    assert isinstance(error_of(PROVIDER, 400, bad), UpstreamAuthFailed)
    assert isinstance(error_of(PROVIDER, 400, [bad]), UpstreamAuthFailed)


def test_an_error_with_a_status_of_success() -> None:
    with pytest.raises(UpstreamError) as refused:
        read(PROVIDER, QUOTA, batch(), by())
    assert isinstance(refused.value, UpstreamRateLimited) and refused.value.retry_after_s == 34.07


def test_an_error_body_that_is_no_json() -> None:
    assert error_of(PROVIDER, 429, orjson.dumps(QUOTA).decode()[:50]).status == 429
