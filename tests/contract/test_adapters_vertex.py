"""Vertex AI by golden pairs: predict, and batchEmbedContents for gemini-embedding-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.embedding import Route
from models.errors import UpstreamAuthFailed, UpstreamError, UpstreamProtocolError, UpstreamRateLimited
from providers.vertex import VertexProvider
from tests.contract.adapter_calls import HEADERS, INPUT_TYPES, batch, error_of, read, route, sent
from tests.contract.test_adapters_google import TASK_TYPES, violated

PROVIDER = VertexProvider()
BASE = "https://europe-west4-aiplatform.googleapis.com/v1/projects/p-1/locations/europe-west4"
PREDICTS = ("gemini-embedding-001", "text-embedding-005", "text-multilingual-embedding-002")


def by(model: str = "text-embedding-005", base: str = BASE, **account: Any) -> Route:
    return route(PROVIDER, base, model, **account)


def of_instances(parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"instances": [{"content": text, **fields} for text in "ab"], "parameters": parameters}


def of_configs(**config: Any) -> dict[str, Any]:
    return {"requests": [{"content": {"parts": [{"text": text}]}, "embedContentConfig": config} for text in "ab"]}


@pytest.mark.parametrize("model", PREDICTS)
def test_the_whole_request(model: str) -> None:
    request = PROVIDER.request(batch(["Zürich"]), by(model))
    assert (request.method, request.url) == ("POST", f"{BASE}/publishers/google/models/{model}:predict")
    assert dict(request.headers) == {**HEADERS, "authorization": "Bearer k-1"}
    assert request.body == '{"instances":[{"content":"Zürich"}],"parameters":{"autoTruncate":false}}'.encode()


def test_the_whole_request_for_gemini_embedding_2() -> None:
    request = PROVIDER.request(batch(["a"]), by("gemini-embedding-2"))
    assert request.url == f"{BASE}/publishers/google/models/gemini-embedding-2:batchEmbedContents"
    assert request.body == (
        b'{"requests":[{"content":{"parts":[{"text":"a"}]},"embedContentConfig":{"autoTruncate":false}}]}'
    )


def test_its_address_is_of_a_project_and_a_location() -> None:
    traits = PROVIDER.traits
    assert set(traits.settings) == {"project", "location"}
    assert traits.base_url.format(project="p-1", location="europe-west4") == BASE
    limits = traits.limits
    assert (limits.inputs_per_call, limits.tokens_per_call, limits.tokens_per_input) == (250, 20_000, 2048)
    assert not traits.narrow_is_unit


def test_the_host_of_the_global_location_has_no_prefix() -> None:
    base = PROVIDER.traits.base_url.format(project="p-1", location="global")
    url = PROVIDER.request(batch(), by(base=base)).url
    assert url.startswith("https://aiplatform.googleapis.com/v1/projects/p-1/locations/global/publishers/")


def test_the_width_is_a_parameter() -> None:
    assert sent(PROVIDER, batch(width=2), by()) == of_instances({"autoTruncate": False, "outputDimensionality": 2})
    narrow = sent(PROVIDER, batch(width=2), by("gemini-embedding-2"))
    assert narrow == of_configs(autoTruncate=False, outputDimensionality=2)


@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_the_task_type_is_of_each_instance(input_type: str) -> None:
    word = TASK_TYPES.get(input_type)
    body = sent(PROVIDER, batch(input_type=input_type), by())
    assert body == of_instances({"autoTruncate": False}, **({"task_type": word} if word else {}))
    assert sent(PROVIDER, batch(input_type=input_type), by("gemini-embedding-2")) == of_configs(autoTruncate=False)


@pytest.mark.parametrize(("truncate", "cuts"), [("none", False), ("end", True), ("mean", False)])
def test_whether_it_may_cut(truncate: str, cuts: bool) -> None:
    assert sent(PROVIDER, batch(truncate=truncate), by()) == of_instances({"autoTruncate": cuts})
    assert sent(PROVIDER, batch(truncate=truncate), by("gemini-embedding-2")) == of_configs(autoTruncate=cuts)


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_no_user_and_one_encoding(encoding: str) -> None:
    assert sent(PROVIDER, batch(user="u"), replace(by(), encoding=encoding)) == of_instances({"autoTruncate": False})


@pytest.mark.parametrize("section", ["main", "vertex"])
def test_options_go_where_they_belong_and_never_override(section: str) -> None:
    options = {section: {"title": "T", "task_type": "FACT_VERIFICATION", "autoTruncate": True, "instances": [], "x": 1}}
    free = sent(PROVIDER, batch(provider_options=options), by())
    assert free == of_instances({"autoTruncate": False, "x": 1}, title="T", task_type="FACT_VERIFICATION")
    mapped = sent(PROVIDER, batch(provider_options=options, input_type="query"), by())
    assert mapped == of_instances({"autoTruncate": False, "x": 1}, title="T", task_type="RETRIEVAL_QUERY")
    batched = sent(PROVIDER, batch(provider_options={section: {"title": "T"}}), by("gemini-embedding-2"))
    assert batched == of_configs(autoTruncate=False, title="T")


def prediction(values: object, **statistics: object) -> dict[str, Any]:
    return {"embeddings": {"values": values, "statistics": statistics}}


ROW = [1.0, -0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("first", "second", "tokens"),
    [
        (3, 4, 7),
        (3.0, 4.0, 7),
        (3, 4.0, 7),
        (3, None, None),
        (3, "4", None),
        (0, 0, None),
        (-3, 1, None),
        (1.5, 1, None),
        (10**9, 1, None),
    ],
)
def test_the_tokens_of_all_instances(first: object, second: object, tokens: int | None) -> None:
    predictions = [prediction(ROW, token_count=first), prediction([0, 1, 0, 0], token_count=second)]
    embedded = read(PROVIDER, {"predictions": predictions, "metadata": {}}, batch(), by())
    assert embedded.vectors.tolist() == [ROW, [0, 1, 0, 0]] and embedded.tokens == tokens


@pytest.mark.parametrize("statistics", [None, 3, [], {}])
def test_statistics_may_be_missing(statistics: object) -> None:
    predictions = [{"embeddings": {"values": ROW, "statistics": statistics}}, {"embeddings": {"values": ROW}}]
    embedded = read(PROVIDER, {"predictions": predictions}, batch(), by())
    assert (embedded.tokens, list(embedded.truncated)) == (None, [])


def test_which_inputs_it_has_cut() -> None:
    cut = [prediction(ROW, token_count=1, truncated=value) for value in (False, True, None, True)]
    assert list(read(PROVIDER, {"predictions": cut}, batch("abcd"), by()).truncated) == [1, 3]


def test_a_reply_for_gemini_embedding_2() -> None:
    reply = {
        "embeddings": [{"values": ROW}, {"values": ROW}],
        "usageMetadata": {"promptTokensDetails": [{"tokenCount": 4}]},
    }
    embedded = read(PROVIDER, reply, batch(), by("gemini-embedding-2"))
    assert embedded.vectors.tolist() == [ROW, ROW] and embedded.tokens == 4


@pytest.mark.parametrize(
    ("values", "position"),
    [([1.0, None, 0, 0], 1), (None, 1), ([0, 0, 0, 0], 1), ([1.0], 1), (["1", 0, 0, 0], None)],
)
def test_a_bad_vector_is_named_and_its_tokens_are_counted(values: object, position: int | None) -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(
            PROVIDER,
            {"predictions": [prediction(ROW, token_count=2), prediction(values, token_count=3)]},
            batch(),
            by(),
        )
    assert refused.value.offending_position == position
    assert refused.value.reported_tokens == (None if position is None else 5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_count(count: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(PROVIDER, {"predictions": [prediction(ROW, token_count=1)] * count}, batch(), by())


def test_errors_are_those_of_the_gemini_api() -> None:
    message = (
        "Quota exceeded for aiplatform.googleapis.com/online_prediction_requests_per_base_model with base model: "
        "textembedding-gecko. Please submit a quota increase request."
    )
    limited = error_of(PROVIDER, 429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": message}})
    assert isinstance(limited, UpstreamRateLimited)
    assert isinstance(error_of(PROVIDER, 429, violated("TokensPerDay")), UpstreamAuthFailed)
    expired = {"error": {"code": 401, "status": "UNAUTHENTICATED", "message": "Request had invalid credentials."}}
    assert isinstance(error_of(PROVIDER, 401, expired), UpstreamAuthFailed)
    with pytest.raises(UpstreamError) as refused:
        read(PROVIDER, expired, batch(), by())
    assert isinstance(refused.value, UpstreamAuthFailed)


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (
            "Unable to submit request because it has a batchSize value of 251 but the supported range is from 1 "
            "(inclusive) to 251 (exclusive).",
            "inputs",
        ),
        ("250 instance(s) is allowed per prediction. Actual: 512", "inputs"),
        (
            "Unable to submit request because the input token count is 21483 but the model supports up to 20000.",
            "tokens",
        ),
    ],
)
def test_a_call_that_is_too_large(message: str, limit: str) -> None:
    error = error_of(PROVIDER, 400, {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": message}})
    assert getattr(error, "limit", None) == limit
