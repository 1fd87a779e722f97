"""Bedrock's families by golden pairs: what is sent byte for byte, and what replies and errors say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson
import pytest

from engine.config.config_file import parse
from models.embedding import Account, Batch, Input, Limits, Options, Route
from models.errors import UpstreamError, UpstreamMisconfigured, UpstreamProtocolError
from providers import PROVIDERS
from providers.base import UpstreamReply, check_embedded
from providers.bedrock import BedrockProvider
from tests.contract.provider_matrix import OBSERVED, Observe

PROVIDER = BedrockProvider()
HOST = "https://bedrock-runtime.us-east-1.amazonaws.com"
ACCOUNT = Account("aws", "bedrock", HOST, "bedrock-key", settings={"region": "us-east-1"})
TITAN_V1 = "amazon.titan-embed-text-v1"
TITAN_V2 = "amazon.titan-embed-text-v2:0"
COHERE_V3 = "cohere.embed-english-v3"
COHERE_V4 = "cohere.embed-v4:0"
NOVA = "amazon.nova-2-multimodal-embeddings-v1:0"
ARN = "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.cohere.embed-v4:0"


def route(model: str, width: int = 1024, account: Account = ACCOUNT) -> Route:
    return Route(account, model, width, PROVIDER.traits_of(model).limits, Decimal("0.02"))


def batch(inputs: Sequence[Input] = ("hello",), width: int = 1024, **options: Any) -> Batch:
    return Batch(list(inputs), range(len(inputs)), 1, width, Options(**options))


def body(model: str, asked: Batch | None = None, native: int = 1024) -> dict[str, Any]:
    sent: dict[str, Any] = orjson.loads(PROVIDER.request(asked or batch(), route(model, native)).body)
    return sent


def test_the_whole_request() -> None:
    request = PROVIDER.request(batch(["Zürich"]), route(TITAN_V2))
    assert (request.method, request.url) == ("POST", f"{HOST}/model/amazon.titan-embed-text-v2%3A0/invoke")
    assert dict(request.headers) == {
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": "Bearer bedrock-key",
    }
    assert request.body == '{"normalize":true,"inputText":"Zürich"}'.encode()


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (TITAN_V1, "amazon.titan-embed-text-v1"),
        ("us.amazon.nova-2-multimodal-embeddings-v1:0", "us.amazon.nova-2-multimodal-embeddings-v1%3A0"),
        (
            ARN,
            "arn%3Aaws%3Abedrock%3Aeu-west-1%3A123456789012%3Ainference-profile%2Feu.cohere.embed-v4%3A0",
        ),
    ],
)
def test_the_model_in_the_path(model: str, path: str) -> None:
    assert PROVIDER.request(batch(), route(model)).url == f"{HOST}/model/{path}/invoke"


@pytest.mark.parametrize(
    "prefix", ["", "us.", "eu.", "global.", "apac.", "us-gov.", "arn:aws:bedrock:a::foundation-model/"]
)
@pytest.mark.parametrize(
    ("model", "inputs", "tokens"),
    [
        (TITAN_V1, 1, 8192),
        ("amazon.titan-embed-g1-text-02", 1, 8192),
        (TITAN_V2, 1, 8192),
        ("amazon.titan-embed-text-v2:0:8k", 1, 8192),
        (COHERE_V3, 96, 512),
        ("cohere.embed-multilingual-v3", 96, 512),
        (COHERE_V4, 96, 128_000),
        (NOVA, 1, 8172),
    ],
)
def test_limits_are_those_of_the_family(prefix: str, model: str, inputs: int, tokens: int) -> None:
    limits = PROVIDER.traits_of(prefix + model).limits
    assert (limits.inputs_per_call, limits.tokens_per_input) == (inputs, tokens)


@pytest.mark.parametrize(
    "model",
    [
        "m",
        "amazon.titan-embed-image-v1",
        "amazon.titan-embed-text-v20:0",
        "cohere.command-r-v1:0",
        "arn:aws:bedrock:us-east-1:1:application-inference-profile/a1b2c3",
        "notamazon.titan-embed-text-v1",
    ],
)
def test_a_model_of_no_known_family(model: str) -> None:
    assert PROVIDER.traits_of(model) is PROVIDER.traits
    with pytest.raises(UpstreamMisconfigured) as refused:
        PROVIDER.request(batch(), route(model))
    assert not refused.value.sent and "name a model" in refused.value.advice


@pytest.mark.parametrize("model", [TITAN_V1, TITAN_V2, NOVA])
def test_one_input_a_call(model: str) -> None:
    with pytest.raises(UpstreamMisconfigured) as refused:
        PROVIDER.request(batch(["a", "b"]), route(model))
    assert "max_inputs_per_call" in refused.value.advice


def test_limits_of_a_configured_route() -> None:
    aliases = parse(
        {
            "providers": {"aws": {"kind": "bedrock", "base_url": HOST}},
            "models": {
                name: {"dimensions": 1024, "routes": [{"provider": "aws", "model": model}]}
                for name, model in (("titan", TITAN_V2), ("cohere", "us." + COHERE_V4))
            },
        },
        {},
    )
    assert aliases["titan"].routes[0].limits.inputs_per_call == 1
    assert aliases["cohere"].routes[0].limits.inputs_per_call == 96
    for kind in ("openai", "local", "cohere"):  # their models are all alike
        assert PROVIDERS[kind].traits_of("m") is PROVIDERS[kind].traits


@pytest.mark.parametrize(
    ("model", "width", "sent"),
    [
        (TITAN_V1, 1024, {"inputText": "hello"}),
        (TITAN_V1, 256, {"inputText": "hello"}),  # it refuses any other field; the width of its reply tells
        (TITAN_V2, 256, {"inputText": "hello", "normalize": True, "dimensions": 256}),
        (COHERE_V3, 256, {"texts": ["hello"], "input_type": "search_document", "truncate": "NONE"}),
        (COHERE_V4, 1024, {"texts": ["hello"], "input_type": "search_document"}),
        (COHERE_V4, 256, {"texts": ["hello"], "input_type": "search_document", "output_dimension": 256}),
    ],
)
def test_widths(model: str, width: int, sent: dict[str, Any]) -> None:
    assert body(model, batch(width=width)) == sent


def nova(width: int = 3072, purpose: str = "GENERIC_INDEX", cut: str = "NONE") -> dict[str, Any]:
    return {
        "schemaVersion": "nova-multimodal-embed-v1",
        "taskType": "SINGLE_EMBEDDING",
        "singleEmbeddingParams": {
            "embeddingPurpose": purpose,
            "embeddingDimension": width,
            "text": {"truncationMode": cut, "value": "hello"},
        },
    }


@pytest.mark.parametrize("width", [3072, 384])
def test_nova_nests_its_fields_and_always_names_the_width(width: int) -> None:
    assert body(NOVA, batch(width=width), 3072) == nova(width)


@pytest.mark.provider_column("input_type", kind="bedrock")
@pytest.mark.parametrize(
    ("input_type", "cohere", "purpose"),
    [
        (None, "search_document", "GENERIC_INDEX"),
        ("query", "search_query", "TEXT_RETRIEVAL"),
        ("document", "search_document", "GENERIC_INDEX"),
        ("classification", "classification", "CLASSIFICATION"),
        ("clustering", "clustering", "CLUSTERING"),
        ("similarity", "search_document", "GENERIC_INDEX"),
        ("code_query", "search_document", "GENERIC_INDEX"),
    ],
)
def test_input_types(input_type: str | None, cohere: str, purpose: str, record_property: Observe) -> None:
    asked = batch(input_type=input_type)
    assert body(COHERE_V3, asked)["input_type"] == body(COHERE_V4, asked)["input_type"] == cohere
    assert body(NOVA, dataclasses.replace(asked, width=3072), 3072) == nova(purpose=purpose)
    assert body(TITAN_V2, asked) == body(TITAN_V2) and body(TITAN_V1, asked) == {"inputText": "hello"}
    record_property(OBSERVED + "input_type", "Cohere's and Nova's field")


@pytest.mark.provider_column("truncate", kind="bedrock")
@pytest.mark.parametrize(
    ("truncate", "v3", "v4", "mode"),
    [("none", "NONE", None, "NONE"), ("end", "END", "RIGHT", "END"), ("mean", "NONE", None, "NONE")],
)
def test_truncation(truncate: str, v3: str, v4: str | None, mode: str, record_property: Observe) -> None:
    asked = batch(truncate=truncate)
    assert body(COHERE_V3, asked)["truncate"] == v3 and body(COHERE_V4, asked).get("truncate") == v4
    assert body(NOVA, dataclasses.replace(asked, width=3072), 3072) == nova(cut=mode)
    assert body(TITAN_V2, asked) == body(TITAN_V2)
    record_property(OBSERVED + "truncate", "Cohere's and Nova's field")


@pytest.mark.parametrize("model", [TITAN_V1, TITAN_V2, COHERE_V3, COHERE_V4, NOVA])
def test_user_is_not_sent(model: str) -> None:
    assert b"u-7" not in PROVIDER.request(batch(user="u-7"), route(model)).body


def test_options_of_the_caller_never_replace_what_the_adapter_sets() -> None:
    options = {"max_tokens": 128, "texts": ["x"], "truncate": "LEFT", "input_type": "image", "output_dimension": 1}
    asked = batch(provider_options={"bedrock": options}, truncate="end")
    assert body(COHERE_V4, asked) == {
        "texts": ["hello"],
        "input_type": "search_document",
        "truncate": "RIGHT",
        "max_tokens": 128,
    }
    other_input = {"inputText": "x", "normalize": False}
    assert body(TITAN_V2, batch(provider_options={"aws": other_input})) == {"inputText": "hello", "normalize": True}
    image = {"singleEmbeddingParams": {"image": {"format": "png"}}, "taskType": "SEGMENTED_EMBEDDING"}
    assert body(NOVA, batch(provider_options={"bedrock": image}, width=3072), 3072) == nova()


# Replies.


def read(
    document: object, model: str = TITAN_V2, count: int = 1, headers: Mapping[str, str] | None = None
) -> tuple[list[list[float]], int | None]:
    asked, by = batch(["a text of many words"] * count, width=2), route(model, 2)
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    embedded = PROVIDER.parse_reply(UpstreamReply(200, headers or {}, raw), asked, by)
    check_embedded(embedded, embedded.vectors, asked, by)
    return embedded.vectors.tolist(), embedded.tokens


@pytest.mark.parametrize(
    ("model", "document", "count"),
    [
        (TITAN_V1, {"embedding": [1, 2]}, 1),
        (TITAN_V2, {"embeddingsByType": {"float": [1, 2], "binary": [1, 0]}}, 1),
        (TITAN_V2, {"embedding": [9, 9], "embeddingsByType": {"float": [1, 2]}}, 1),
        (TITAN_V2, {"embedding": [1, 2], "embeddingsByType": {"binary": [1, 0]}}, 1),
        (COHERE_V3, {"embeddings": [[1, 2], [1, 2]], "id": "e", "response_type": "embeddings_floats", "texts": []}, 2),
        (COHERE_V4, {"embeddings": {"float": [[1, 2], [1, 2]], "int8": None}}, 2),
        (NOVA, {"embeddings": [{"embeddingType": "TEXT", "embedding": [1, 2], "truncatedCharLength": 7}]}, 1),
    ],
)
def test_replies_of_each_family(model: str, document: object, count: int) -> None:
    assert read(document, model, count) == ([[1, 2]] * count, None)


@pytest.mark.parametrize(
    ("header", "fields", "tokens"),
    [
        ("5", {}, 5),
        ("5", {"inputTextTokenCount": 6}, 5),
        (" 5 ", {"inputTextTokenCount": None}, 5),
        ("", {"inputTextTokenCount": 6}, 6),
        ("", {"inputTokenCount": 7}, 7),
        ("x", {"inputTextTokenCount": 6}, 6),
        ("99999", {"inputTextTokenCount": 6}, 6),
        ("-1", {}, None),
        ("1.5", {}, None),
        ("9" * 5000, {}, None),
        ("²", {}, None),
        ("", {"inputTextTokenCount": "6"}, None),
        ("", {"inputTextTokenCount": True}, None),
        ("", {"inputTextTokenCount": [6]}, None),
        ("0", {"inputTextTokenCount": 0}, None),
    ],
)
def test_usage_is_in_the_header_or_in_the_body(header: str, fields: Mapping[str, object], tokens: int | None) -> None:
    headers = {"x-amzn-bedrock-input-token-count": header} if header else {}
    assert read({"embedding": [1, 2], **fields}, headers=headers) == ([[1, 2]], tokens)


def test_usage_in_an_odd_form_is_doubted() -> None:
    reply = UpstreamReply(200, {"x-amzn-bedrock-input-token-count": "many"}, b'{"embedding":[1,2]}')
    embedded = PROVIDER.parse_reply(reply, batch(width=2))
    assert embedded.tokens is None and embedded.tokens_doubt == "it is not a whole number"


@pytest.mark.parametrize(
    ("model", "document", "count"),
    [
        (TITAN_V2, {"embeddingsByType": {"binary": [1, 0]}}, 1),
        (TITAN_V2, {"embedding": None}, 1),
        (TITAN_V2, {"embedding": [[1, 2]]}, 1),
        (TITAN_V2, {"embedding": "AACAPwAAAEA="}, 1),
        (TITAN_V2, {"embedding": [1, None]}, 1),
        (TITAN_V2, b'{"embedding":[1,NaN]}', 1),
        (TITAN_V2, b'{"embedding":[1,Infinity]}', 1),
        (TITAN_V2, {"message": "Malformed input request"}, 1),
        (COHERE_V3, {"embeddings": [[1, 2]]}, 2),
        (COHERE_V3, {"embeddings": [[1, 2], [1, None]]}, 2),
        (COHERE_V3, {"embeddings": [[1, 2], None]}, 2),
        (COHERE_V3, {"embeddings": [[[1, 2]], [[1, 2]]]}, 2),
        (COHERE_V3, {"embeddings": [1, 2]}, 2),
        (COHERE_V4, {"embeddings": {"int8": [[1, 2], [1, 2]]}}, 2),
        (COHERE_V4, {"embeddings": {}}, 2),
        (NOVA, {"embeddings": [{"embedding": [1, 2]}, {"embedding": [1, 2]}]}, 1),
        (NOVA, {"embeddings": [{"embeddingType": "TEXT"}]}, 1),
        (NOVA, {"embeddings": [{"embedding": None}]}, 1),
        (NOVA, {"embeddings": []}, 1),
    ],
)
def test_anything_but_one_good_vector_an_input(model: str, document: object, count: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(document, model, count)


def test_a_200_with_an_error_in_it() -> None:
    with pytest.raises(UpstreamError) as raised:
        read({"error": {"message": "overloaded", "code": 429}})
    assert raised.value.code == "upstream_rate_limited"


# Errors.


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("ThrottlingException", "throttlingexception"),
        ("ValidationException:http://internal.amazon.com/coral/com.amazon.bedrock/", "validationexception"),
        (" ModelErrorException : x", "modelerrorexception"),
    ],
)
def test_the_type_of_an_error_is_a_code(header: str, code: str) -> None:
    reply = UpstreamReply(400, {"x-amzn-errortype": header}, b'{"message":"no","type":"Other"}')
    facts = PROVIDER.facts(reply)
    assert facts.codes == {code, "other"} and (facts.status, facts.message) == (400, "no")


@pytest.mark.parametrize("headers", [{}, {"x-amzn-errortype": ""}, {"x-amzn-errortype": "x" * 101}])
def test_an_error_without_a_type(headers: dict[str, str]) -> None:
    assert PROVIDER.facts(UpstreamReply(400, headers, b'{"message":"no"}')).codes == frozenset()


@pytest.mark.parametrize(
    "message",
    [
        "400 Bad Request: Too many input tokens. Max input tokens: 8192, request input token count: 9875",
        "Malformed input request: expected maxLength: 2048, actual: 2459, please reformat your input and try again.",
        "Input is too long for requested model.",
    ],
)
def test_too_long_inputs(message: str) -> None:
    headers = {"x-amzn-errortype": "ValidationException"}
    error = PROVIDER.error_from(UpstreamReply(400, headers, orjson.dumps({"message": message})))
    assert error.code == "input_too_long"


def test_the_settings_of_an_account() -> None:
    settings = PROVIDER.traits.settings
    assert list(settings) == ["region", "access_key_id", "secret_access_key", "session_token"]
    assert not settings["region"].is_optional and not settings["region"].is_secret
    assert all(settings[name].is_secret and settings[name].is_optional for name in list(settings)[1:])
    assert PROVIDER.traits.is_signed and "{region}" in PROVIDER.traits.base_url
    assert PROVIDER.traits.limits == Limits(1, 8192, 8192, 1024 * 1024)
