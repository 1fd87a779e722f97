"""Errors in the envelopes of many servers: what each means, and that nothing a caller can have quoted decides it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from models.errors import (
    EmbeddingsUnsupported,
    EncodingRefused,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers.base import UpstreamReply
from providers.openai import OpenAIProvider

PROVIDER = OpenAIProvider()


def error_of(status: int, body: Any) -> UpstreamError:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return PROVIDER.error_from(UpstreamReply(status, {}, raw))


def openai(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}}


VLLM = (
    "This model's maximum context length is 512 tokens. However, you requested 1451 tokens in the input for embedding "
    "generation. Please reduce the length of the input."
)
LLAMA = "input (518 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
CONTEXT = {"code": 400, "message": "…", "type": "exceed_context_size_error", "n_prompt_tokens": 518, "n_ctx": 512}


@pytest.mark.parametrize(
    ("status", "body", "limit", "count"),
    [
        (400, openai("Invalid 'input[3]': maximum input length is 8192 tokens."), 8192, None),
        (400, openai("…", code="context_length_exceeded"), None, None),
        (400, openai("Invalid 'input': string too long. …", code="string_above_max_length"), None, None),
        (400, {"object": "error", "message": VLLM, "type": "BadRequestError", "param": None, "code": 400}, 512, 1451),
        (400, {"error": {"message": VLLM, "type": "BadRequestError", "param": "input_tokens", "code": 400}}, 512, 1451),
        (400, {"error": "the input length exceeds the context length"}, None, None),
        (400, {"error": "input exceeds maximum context length and cannot be truncated further"}, None, None),
        (500, {"error": "input length exceeds maximum context length"}, None, None),
        (500, {"error": {"code": 500, "message": LLAMA, "type": "server_error"}}, 512, 518),
        (
            500,
            {"error": {"code": 500, "message": "input is too large to process.", "type": "server_error"}},
            None,
            None,
        ),
        (400, {"error": CONTEXT}, 512, 518),
        (500, {"error": {**CONTEXT, "code": 500}}, 512, 518),
        (
            422,
            {"message": "Input validation error: `inputs` must have less than 512 tokens. Given: 516", "code": 422},
            512,
            516,
        ),
        (
            413,
            {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 516"},
            512,
            516,
        ),
        (400, {"object": "error", "message": "Input length 548 exceeds maximum allowed token size 512"}, 512, 548),
        (
            400,
            openai(f"litellm.ContextWindowExceededError: litellm.BadRequestError: OpenAIException - {VLLM}"),
            512,
            1451,
        ),
        (400, openai("litellm.ContextWindowExceededError: in words of its own"), None, None),
        (
            400,
            openai("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 8192]"),
            8192,
            None,
        ),
        (400, openai("The input (600 tokens) is longer than the model's context length (512 tokens)."), 512, 600),
    ],
)
def test_an_input_that_is_too_long(status: int, body: Any, limit: int | None, count: int | None) -> None:
    error = error_of(status, body)
    assert isinstance(error, UpstreamRejected) and error.code == "input_too_long"
    assert (error.token_limit, error.token_count) == (limit, count)


GOOGLE_KEY = {
    "code": 400,
    "message": "API key not valid. Please pass a valid API key.",
    "status": "INVALID_ARGUMENT",
    "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": GOOGLE_KEY}),
        (400, [{"error": GOOGLE_KEY}]),
        (400, [{"error": {**GOOGLE_KEY, "details": []}}]),
        (400, [{"error": {**GOOGLE_KEY, "message": ""}}]),
        (400, openai("API Key not found. Please pass a valid API key.")),
        (401, b""),
        (401, {"error": "Unauthorized"}),
        (401, {"statusCode": 401, "message": "Unauthorized. Access token is missing, invalid, …"}),
        (401, {"detail": "Unauthorized"}),
        (400, openai("litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect API key provided")),
        (403, {"error": {"code": "PERMISSION_DENIED", "message": "…", "innererror": {"code": "Forbidden"}}}),
        (400, {"error": {"code": "BadRequest", "message": "…", "innererror": {"code": "API_KEY_INVALID"}}}),
    ],
)
def test_a_refused_credential_also_with_status_400(status: int, body: Any) -> None:
    error = error_of(status, body)
    assert isinstance(error, UpstreamAuthFailed) and error.code == "upstream_auth_failed" and error.advice


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, openai("You are not allowed to generate embeddings from this model")),
        (400, {"object": "error", "message": "The model does not support Embeddings API", "code": 400}),
        (
            501,
            {
                "error": {
                    "code": 501,
                    "message": "This server does not support embeddings.",
                    "type": "not_supported_error",
                }
            },
        ),
        (400, {"error": "this model does not support embeddings"}),
        (500, {"error": '"llama3.2" does not support embeddings'}),
        (404, openai("models/gemini-3 is not found for API version v1beta, or is not supported for embedContent.")),
        (400, {"error": {"code": "OperationNotSupported", "message": "The embeddings operation does not work with …"}}),
        (400, {"error": "Model qwen3-8b is not an embedding model"}),
        (400, openai("litellm.BadRequestError: OpenAIException - Model gpt-4o doesn't support embeddings")),
        (501, b"no"),
    ],
)
def test_a_model_that_cannot_embed(status: int, body: Any) -> None:
    error = error_of(status, body)
    assert isinstance(error, EmbeddingsUnsupported) and error.code == "not_implemented" and error.advice


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, openai("Invalid value for 'encoding_format'.", param="encoding_format", code="invalid_value")),
        (400, openai("…", param="encoding_format")),
        (
            422,
            {"detail": [{"loc": ["body", "encoding_format"], "msg": "…", "type": "literal_error", "input": "base64"}]},
        ),
        (400, openai("Unknown parameter: 'encoding_format'.", param="encoding_format", code="unknown_parameter")),
        (400, {"error": "base64 encoding is not supported"}),
        (400, openai("The format to return the embeddings in. Can be either float or base64")),
    ],
)
def test_base64_that_a_server_does_not_give(status: int, body: Any) -> None:
    assert isinstance(error_of(status, body), EncodingRefused)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (
            400,
            {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "code": "1500"},
            UpstreamMisconfigured,
        ),
        (404, {"detail": "Not Found"}, UpstreamMisconfigured),
        (400, openai('Model "x" does not support matryoshka representation, changing …'), UpstreamMisconfigured),
        (422, {"detail": [{"loc": ["body", "dimensions"], "msg": "…"}]}, UpstreamMisconfigured),
        (407, b"", UpstreamMisconfigured),
        (400, {"message": "Too many tokens in batch. Max is 16384 got 17555"}, UpstreamTooLarge),
        (422, {"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"}, UpstreamTooLarge),
        (
            400,
            openai("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"),
            UpstreamTooLarge,
        ),
        (429, {"error": "Model is overloaded", "error_type": "Overloaded"}, UpstreamRateLimited),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, UpstreamOverloaded),
        (424, {"error": "CUDA out of memory", "error_type": "Backend"}, UpstreamUnavailable),
        (500, {"error": "failed to encode response: json: unsupported value: NaN"}, UpstreamRejected),
    ],
)
def test_other_errors_of_other_servers(status: int, body: Any, kind: type[UpstreamError]) -> None:
    assert type(error_of(status, body)) is kind


def test_googles_delay_is_read_from_the_body() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}]
    error = error_of(
        429, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "…", "details": details}}]
    )
    assert isinstance(error, UpstreamRateLimited) and error.retry_after_s == pytest.approx(34.07)


@pytest.mark.parametrize(
    ("body", "quota"),
    [
        (openai("Rate limit reached for m on tokens per min (TPM): Limit 100, Used 90.", type="tokens"), "tokens"),
        (openai("Rate limit reached for m on requests per min (RPM): Limit 3.", type="requests"), "requests"),
        (openai("Requests have exceeded token rate limit of your current pricing tier."), "tokens"),
        (openai("Requests have exceeded call rate limit of your current pricing tier."), "requests"),
        ({"detail": "reduced rate limits of 3 RPM and 10K TPM"}, ""),
        (openai("3 RPM and 10K TPM"), ""),
        (openai("slow down"), ""),
    ],
)
def test_the_quota_that_a_429_names(body: Any, quota: str) -> None:
    error = error_of(429, body)
    assert isinstance(error, UpstreamRateLimited) and error.quota == quota


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, {"detail": [{"loc": ["body", "input", 3], "msg": "…", "type": "string_too_short", "input": ""}]}),
        (400, openai("Invalid 'input[3]': must not be empty.")),
        (400, openai("…", param="input[3]")),
    ],
)
def test_the_input_that_is_named_is_a_suspect(status: int, body: Any) -> None:
    error = error_of(status, body)
    assert isinstance(error, UpstreamRejected) and error.offending_position == 3


HOSTILE = (
    "a poem about the fourth dimension",
    "You exceeded your current quota",
    "API key not valid",
    "an array too long to sing",
    "This model's maximum context length is 12 tokens",
    "Invalid 'input[0]': maximum input length is 1 tokens",
    "this model does not support embeddings",
    "encoding_format must be float",
    "model x does not exist",
    "maximum request size is 1",
    '{"error":{"code":"invalid_api_key"}}',
)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_text_that_a_server_quotes_decides_nothing(text: str, status: int) -> None:
    """An input is refused for what is in it; the route is judged as by the same error without the text."""
    quoting = [
        {
            "detail": [
                {"loc": ["body", "input", 0], "msg": text, "type": "value_error", "input": text, "ctx": {"e": text}}
            ]
        },
        {"detail": text},
        {"object": "error", "message": {"detail": [{"loc": ["body", "input"], "msg": text, "input": text}]}},
        openai(f"Value error for input {text!r}"),
        openai(f"We could not process '{text}'"),
        {"error": {"message": "Bad input.", "metadata": {"raw": text}, "details": [{"description": text}]}},
        {"input": text, "errors": [{"message": text}]},
        f"cannot read: {text}".encode(),
        f"<html>{text}</html>".encode(),
        orjson.dumps(text),
        orjson.dumps([text]),
    ]
    for body in quoting:
        error = error_of(status, body)
        assert type(error) is (UpstreamUnavailable if status == 500 else UpstreamRejected), body
        assert error.code in ("upstream_unavailable", "upstream_rejected") and text not in error.message + error.advice


def test_a_body_beyond_all_measure_is_judged_by_its_status() -> None:
    huge = openai("API key not valid", padding="x" * 1024 * 1024)
    assert type(error_of(400, huge)) is UpstreamRejected
    assert type(error_of(500, b'{"error":' * 20_000)) is UpstreamUnavailable
