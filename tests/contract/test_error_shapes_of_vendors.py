"""Every recorded error of the hosted vendors: what each means."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import (
    EmbeddingsUnsupported,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers import PROVIDERS
from providers.base import UpstreamReply
from tests.contract.vendor_errors import Row, check, openai

CREDIT = "upstream_quota"
LONG = "input_too_long"
TOO_MANY_TOKENS = (
    "Request to model 'voyage-3-large' failed. The max allowed tokens per submitted batch is 120000. Your batch has "
    "124302 tokens after truncation. Please lower the number of tokens in the batch."
)
TPM = (
    "Rate limit reached for text-embedding-3-small in organization org-1 on tokens per min (TPM): Limit 1000000, Used "
    "976163, Requested 70716. Please try again in 2.812s."
)
OLD_LENGTH = (
    "This model's maximum context length is 8192 tokens, however you requested 51435 tokens (51435 in your prompt; 0 "
    "for the completion). Please reduce your prompt; or completion length."
)


def azure(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def azure_429(seconds: int) -> dict[str, Any]:
    return azure(
        "429",
        "Requests to the Embeddings_Create Operation under Azure OpenAI API version 2024-02-01 have exceeded call rate "
        f"limit of your current OpenAI S0 pricing tier. Please retry after {seconds} seconds.",
    )


OPENAI = (
    Row("openai", 400, openai(OLD_LENGTH), UpstreamRejected, LONG, numbers=(8192, 51435)),
    Row(
        "openai",
        400,
        openai("Invalid 'input[3]': maximum input length is 8192 tokens."),
        UpstreamRejected,
        LONG,
        numbers=(8192, None),
        position=3,
    ),
    Row(
        "openai",
        400,
        openai("Requested 453357 tokens, max 300000 tokens per request", "max_tokens_per_request"),
        UpstreamTooLarge,
        limit="tokens",
    ),
    Row(
        "openai",
        400,
        openai("'$.input' is invalid. The array length must be 2048 or less."),
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row("openai", 400, openai("'$.input' is invalid. Please check the API reference."), UpstreamRejected),
    Row("openai", 400, openai("-1 is less than the minimum of 1 - 'dimensions'"), UpstreamMisconfigured),
    Row("openai", 400, openai("This model does not support specifying dimensions."), UpstreamMisconfigured),
    Row("openai", 401, openai("Incorrect API key provided: sk-1.", code="invalid_api_key"), UpstreamAuthFailed),
    Row("openai", 403, openai("…", code="unsupported_country_region_territory"), UpstreamAuthFailed),
    Row(
        "openai",
        404,
        openai("The model `x` does not exist or you do not have access to it.", code="model_not_found"),
        UpstreamMisconfigured,
    ),
    Row(
        "openai",
        429,
        openai(TPM, "tokens", code="rate_limit_exceeded"),
        UpstreamRateLimited,
        headers={"retry-after-ms": "2812", "retry-after": "3"},
        wait_s=2.812,
        quota="tokens",
    ),
    Row("openai", 429, openai("slow", "requests"), UpstreamRateLimited, quota="requests"),
    Row("openai", 429, openai("…", "insufficient_quota", code="insufficient_quota"), UpstreamAuthFailed, CREDIT),
    Row("openai", 500, openai("The server had an error", "server_error"), UpstreamUnavailable),
    Row("openai", 503, openai("overloaded", "server_error"), UpstreamOverloaded),
)
AZURE = (
    Row("azure", 401, azure("401", "Access denied due to invalid subscription key."), UpstreamAuthFailed),
    Row("azure", 401, {"statusCode": 401, "message": "Unauthorized. Access token is missing."}, UpstreamAuthFailed),
    Row(
        "azure",
        404,
        azure("DeploymentNotFound", "The API deployment for this resource does not exist."),
        UpstreamMisconfigured,
    ),
    Row("azure", 404, azure("404", "Resource not found"), UpstreamMisconfigured),
    Row("azure", 429, azure_429(55), UpstreamRateLimited, wait_s=55.0, quota="requests"),
    Row("azure", 429, azure_429(86400), UpstreamRateLimited, wait_s=120.0, quota="requests"),
    Row("azure", 400, openai(OLD_LENGTH), UpstreamRejected, LONG, numbers=(8192, 51435)),
    Row("azure", 408, azure("Timeout", "…"), UpstreamTimeout),
)
COHERE = (
    Row(
        "cohere",
        400,
        {"message": "invalid request: total number of texts must be at most 96 - received 104", "id": "1"},
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row(
        "cohere",
        400,
        {"message": "invalid request: inputs contains an element that is the empty string at index 7"},
        UpstreamRejected,
        position=7,
    ),
    Row(
        "cohere",
        400,
        {"message": "invalid request: valid input_type must be provided with the provided model"},
        UpstreamMisconfigured,
    ),
    Row("cohere", 400, {"message": "too many tokens: 600 is more than 512"}, UpstreamRejected, LONG),
    Row("cohere", 400, {"message": "invalid request: too many tokens: 600"}, UpstreamRejected, LONG),
    Row("cohere", 401, {"message": "invalid api token"}, UpstreamAuthFailed),
    Row("cohere", 401, {"message": "no api key supplied"}, UpstreamAuthFailed),
    Row("cohere", 402, {"message": "billing limit reached"}, UpstreamAuthFailed, CREDIT),
    Row("cohere", 403, {"message": "…"}, UpstreamAuthFailed),
    Row(
        "cohere",
        404,
        {"message": "model 'xyz' not found, make sure …"},
        UpstreamMisconfigured,
    ),
    Row("cohere", 422, {"message": "…"}, UpstreamRejected),
    Row(
        "cohere",
        429,
        {"message": "trial token rate limit exceeded, limit is 100000 tokens per minute"},
        UpstreamRateLimited,
        quota="tokens",
    ),
    Row(
        "cohere",
        429,
        {"message": "You are using a Trial key, which is limited to 40 API calls / minute."},
        UpstreamRateLimited,
        headers={"x-ratelimit-reset": "1792567690", "date": "Wed, 21 Oct 2026 07:28:00 GMT"},
        wait_s=10.0,
        quota="requests",
    ),
    Row(
        "cohere",
        429,
        {"message": "You are using a Trial key, which is limited to 1000 API calls / month. You can …"},
        UpstreamAuthFailed,
        CREDIT,
    ),
    Row("cohere", 498, {"message": "text contains a blocked token"}, UpstreamRejected),
    Row("cohere", 499, {"message": "client closed request"}, UpstreamTimeout),
    Row("cohere", 501, {"message": "not implemented"}, EmbeddingsUnsupported),
    Row("cohere", 500, {"message": "internal server error"}, UpstreamUnavailable),
    Row("cohere", 503, {"message": "unavailable"}, UpstreamOverloaded),
    Row("cohere", 504, {"message": "timeout"}, UpstreamTimeout),
)
VOYAGE = (
    Row("voyage", 400, {"detail": TOO_MANY_TOKENS}, UpstreamTooLarge, limit="tokens"),
    Row("voyage", 400, {"detail": "TOO_MANY_TOKENS_IN_BATCH"}, UpstreamTooLarge, limit="tokens"),
    Row("voyage", 400, {"detail": "…", "code": "TOO_MANY_TOKENS_IN_BATCH"}, UpstreamTooLarge, limit="tokens"),
    Row(
        "voyage",
        400,
        {"detail": "Request to model 'voyage-4' failed. The batch size limit is 1000. Your batch size is 1001."},
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row(
        "voyage",
        400,
        {
            "detail": "Request to model 'voyage-3' failed. The example at index 2 in your batch has too many tokens "
            "and does not fit into the model's context window of 32000 tokens."
        },
        UpstreamRejected,
        LONG,
        numbers=(32_000, None),
        position=2,
    ),
    Row("voyage", 400, {"detail": "Input cannot contain empty strings or empty lists"}, UpstreamRejected),
    Row(
        "voyage",
        400,
        {"detail": "Value '3' supplied for argument 'output_dimension' is not valid"},
        UpstreamMisconfigured,
    ),
    Row("voyage", 401, {"detail": "Provided API key is invalid."}, UpstreamAuthFailed),
    Row("voyage", 403, {"detail": "IP address not allowed"}, UpstreamAuthFailed),
    Row("voyage", 422, b"unprocessable", UpstreamRejected),
    Row(
        "voyage",
        429,
        {"detail": "You have not yet added your payment method and have reduced rate limits of 3 RPM and 10K TPM."},
        UpstreamRateLimited,
        headers={"retry-after": "20"},
        wait_s=20.0,
    ),
    Row("voyage", 500, {"detail": "…"}, UpstreamUnavailable),
    Row("voyage", 502, b"bad gateway", UpstreamUnavailable),
    Row("voyage", 503, {"detail": "high load"}, UpstreamOverloaded),
)
MISTRAL = (
    *(
        Row(
            "mistral",
            400,
            {"object": "error", "message": words, "type": kind, "code": code},
            UpstreamTooLarge,
            limit=limit,
        )
        for words, kind, code, limit in (
            ("Too many tokens in batch. Max is 16384 got 17555", "invalid_request_error", None, "tokens"),
            ("Too many tokens overall, split into more batches.", "invalid_request_prompt", "3210", "tokens"),
            ("Too many inputs in request, split into more batches.", "invalid_request_prompt", "3210", "inputs"),
            ("In words of next year", "invalid_request_prompt", "3210", "tokens"),
            ("In words of next year", "invalid_request_prompt", 3210, "tokens"),
        )
    ),
    Row(
        "mistral", 400, {"message": "Invalid model: x", "type": "invalid_model", "code": "1500"}, UpstreamMisconfigured
    ),
    Row("mistral", 401, {"message": "Unauthorized", "request_id": "1"}, UpstreamAuthFailed),
    Row("mistral", 401, {"detail": "Unauthorized"}, UpstreamAuthFailed),
    Row(
        "mistral",
        422,
        {"detail": [{"loc": ["body", "input", 3], "msg": "…", "type": "string_type", "input": 1}]},
        UpstreamRejected,
        position=3,
    ),
    Row(
        "mistral",
        422,
        {"object": "error", "message": {"detail": [{"loc": ["body", "input", 3], "msg": "…", "type": "string_type"}]}},
        UpstreamRejected,
        position=3,
    ),
    Row(
        "mistral",
        422,
        {"object": "error", "message": {"detail": [{"loc": ["body", "output_dimension"], "msg": "…", "type": "x"}]}},
        UpstreamMisconfigured,
    ),
    Row(
        "mistral",
        422,
        {"detail": [{"loc": ["body", "dimensions2"], "msg": "…", "type": "extra_forbidden"}]},
        UpstreamMisconfigured,
    ),
    Row(
        "mistral",
        429,
        {"message": "Requests rate limit exceeded"},
        UpstreamRateLimited,
        headers={"retry-after": "1"},
        wait_s=1.0,
        quota="requests",
    ),
    Row("mistral", 429, {"message": "Service tier capacity exceeded for this model."}, UpstreamRateLimited),
)
JINA_AND_NOMIC = (
    Row(
        "jina",
        400,
        {
            "detail": "[RID: 4f-1] Validation error: 'body -> jina-embeddings-v4' Each input list can contain at most "
            "512 items."
        },
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row(
        "jina",
        400,
        {"detail": "input length is larger than the largest allowed size 2048"},
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row("jina", 400, {"detail": "…", "code": "INPUT_MODEL_NOT_FOUND"}, UpstreamMisconfigured),
    Row("jina", 400, {"detail": "[RID: 1] INPUT_MODEL_NOT_FOUND: no such model"}, UpstreamMisconfigured),
    Row("jina", 401, {"detail": "…", "code": "AUTH_INVALID_API_KEY"}, UpstreamAuthFailed),
    Row("jina", 403, {"detail": "…", "code": "AUTHZ_INSUFFICIENT_BALANCE"}, UpstreamAuthFailed, CREDIT),
    Row("jina", 403, {"detail": "[RID: 1] AUTHZ_INSUFFICIENT_BALANCE"}, UpstreamAuthFailed, CREDIT),
    Row("jina", 403, {"detail": "[RID: 1] Insufficient account balance"}, UpstreamAuthFailed, CREDIT),
    Row("jina", 403, {"detail": "…", "code": "AUTHZ_RESOURCE_LIMIT_EXCEEDED"}, UpstreamAuthFailed),
    Row("jina", 402, {"detail": "…"}, UpstreamAuthFailed, CREDIT),
    Row("jina", 422, {"detail": [{"loc": ["body", "task"], "msg": "…", "type": "enum"}]}, UpstreamMisconfigured),
    Row("jina", 429, {"detail": "[RID: 1] Token rate limit exceeded"}, UpstreamRateLimited, quota="tokens"),
    Row("nomic", 400, {"detail": "Invalid model: x"}, UpstreamMisconfigured),
    Row(
        "nomic",
        422,
        {"detail": [{"loc": ["body", "texts", 5], "msg": "…", "type": "string_type"}]},
        UpstreamRejected,
        position=5,
    ),
    Row(
        "nomic",
        422,
        {"detail": [{"loc": ["body", "texts"], "msg": "…", "type": "too_long"}]},
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row(
        "nomic", 422, {"detail": [{"loc": ["body", "dimensionality"], "msg": "…", "type": "x"}]}, UpstreamMisconfigured
    ),
    Row("nomic", 401, {"detail": "…"}, UpstreamAuthFailed),
    Row("nomic", 402, {"detail": "…"}, UpstreamAuthFailed, CREDIT),
    Row("nomic", 429, {"detail": "…"}, UpstreamRateLimited),
)


@pytest.mark.parametrize(
    "row",
    [*OPENAI, *AZURE, *COHERE, *VOYAGE, *MISTRAL, *JINA_AND_NOMIC],
    ids=str,
)
def test_an_error_of_a_hosted_vendor(row: Row) -> None:
    check(row)


HOSTILE = (
    "You exceeded your current quota",
    "AUTHZ_INSUFFICIENT_BALANCE",
    "API key not valid",
    "Invalid model: x",
    "Too many tokens overall",
    "Each input list can contain at most 1 items",
    "embedding contains NaN",
    "Value 'x' supplied for argument 'output_dimension'",
)


@pytest.mark.parametrize("kind", ["voyage", "jina", "deepinfra"])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_that_is_quoted_in_a_detail_decides_nothing(kind: str, text: str) -> None:
    """Also where a vendor's own `detail` is read: only its beginning counts, and never a validator's list."""
    for body in (
        openai(f"Value error for input {text!r}"),
        {"detail": f"Value error for input {text!r}"},
        {"detail": {"error": f"Could not embed {text!r}"}},
        {"detail": [{"loc": ["body", "input", 0], "msg": text, "type": "value_error", "input": text}]},
        {"detail": {"detail": text, "msg": text}},
        {"errors": [{"message": text}]},
    ):
        row = Row(kind, 422, body, UpstreamRejected, position=0 if isinstance(body.get("detail"), list) else None)
        check(row)


def test_only_some_vendors_write_their_own_words_in_a_detail() -> None:
    detail = b'{"detail":"Invalid model: x"}'
    kinds = {}
    for kind, provider in PROVIDERS.items():
        if provider.traits.can_embed and kind != "local":
            error: UpstreamError = provider.error_from(UpstreamReply(400, {}, detail))
            kinds[kind] = isinstance(error, UpstreamMisconfigured)
    assert {kind for kind, is_read in kinds.items() if is_read} >= {"voyage", "jina", "deepinfra"}
    assert not {"openai", "azure", "mistral", "vllm", "infinity"} & {kind for kind, is_read in kinds.items() if is_read}
