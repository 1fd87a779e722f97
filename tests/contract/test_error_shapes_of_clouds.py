"""Every recorded error of the clouds with a wire format of their own: what each means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
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
from providers.error_envelope import error_facts
from providers.error_map import error_from
from tests.contract.vendor_errors import Row, check, openai

CREDIT = "upstream_quota"
LONG = "input_too_long"


def google(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def violated(quota_id: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota_id}]}


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}
BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
EXCEEDED = "You exceeded your current quota, please check your plan and billing details."
GOOGLE = (
    Row(
        "google",
        400,
        google(
            400, "INVALID_ARGUMENT", "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"
        ),
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row(
        "google",
        400,
        google(400, "INVALID_ARGUMENT", "EmbedContentRequest.content contains an empty Part."),
        UpstreamRejected,
    ),
    Row(
        "google",
        400,
        [google(400, "INVALID_ARGUMENT", "* BatchEmbedContentsRequest.requests[3].content contains an empty Part.")],
        UpstreamRejected,
        position=3,
    ),
    Row("google", 400, google(400, "INVALID_ARGUMENT", "…", BAD_KEY), UpstreamAuthFailed),
    Row("google", 400, [google(400, "INVALID_ARGUMENT", "API key not valid. Please …")], UpstreamAuthFailed),
    Row("google", 400, google(400, "FAILED_PRECONDITION", "Please enable billing"), UpstreamAuthFailed, CREDIT),
    Row("google", 403, google(403, "PERMISSION_DENIED", "…"), UpstreamAuthFailed),
    Row(
        "google",
        404,
        google(404, "NOT_FOUND", "models/x is not found for API version v1beta, or is not supported for embedContent."),
        EmbeddingsUnsupported,
    ),
    Row("google", 404, google(404, "NOT_FOUND", "…"), UpstreamMisconfigured),
    Row(
        "google",
        429,
        google(429, "RESOURCE_EXHAUSTED", EXCEEDED, violated("EmbedContentRequestsPerMinutePerUser"), RETRY),
        UpstreamRateLimited,
        wait_s=34.07,
        quota="requests",
    ),
    Row(
        "google",
        429,
        google(429, "RESOURCE_EXHAUSTED", EXCEEDED, violated("EmbedContentInputTokensPerModelPerMinute"), RETRY),
        UpstreamRateLimited,
        wait_s=34.07,
        quota="tokens",
    ),
    Row(
        "google",
        429,
        [google(429, "RESOURCE_EXHAUSTED", EXCEEDED, violated("EmbedContentRequestsPerDayPerUser-FreeTier"), RETRY)],
        UpstreamAuthFailed,
        CREDIT,
    ),
    Row(
        "google",
        429,
        google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
        UpstreamRateLimited,
    ),
    Row("google", 500, google(500, "INTERNAL", "…"), UpstreamUnavailable),
    Row("google", 503, google(503, "UNAVAILABLE", "…"), UpstreamOverloaded),
    Row("google", 504, google(504, "DEADLINE_EXCEEDED", "…"), UpstreamTimeout),
    *(
        Row("vertex", 400, google(400, "INVALID_ARGUMENT", words), UpstreamTooLarge, limit=limit)
        for words, limit in (
            (
                "Unable to submit request because it has a batchSize value of 251 but the supported range is from 1 "
                "(inclusive) to 251 (exclusive).",
                "inputs",
            ),
            ("250 instance(s) is allowed per prediction. Actual: 512", "inputs"),
            (
                "Unable to submit request because the input token count is 21483 but the model supports up to 20000",
                "tokens",
            ),
        )
    ),
    Row("vertex", 401, google(401, "UNAUTHENTICATED", "…"), UpstreamAuthFailed),
    Row("vertex", 403, google(403, "PERMISSION_DENIED", "…"), UpstreamAuthFailed),
    Row(
        "vertex",
        429,
        google(
            429,
            "RESOURCE_EXHAUSTED",
            "Quota exceeded for aiplatform.googleapis.com/online_prediction_requests_per_base_model with base model: x",
        ),
        UpstreamRateLimited,
        quota="requests",
    ),
)


def bedrock(status: int, kind: str, message: str, means: type[UpstreamError], code: str = "", **more: Any) -> Any:
    return status, kind, Row("bedrock", status, {"message": message}, means, code or None, **more)


BEDROCK = [
    bedrock(
        400,
        "ValidationException",
        "400 Bad Request: Too many input tokens. Max input tokens: 8192, request input token count: 9875",
        UpstreamRejected,
        LONG,
        numbers=(8192, 9875),
    ),
    bedrock(
        400,
        "ValidationException",
        "Malformed input request: expected maxLength: 2048, actual: 2459, please reformat your input and try again.",
        UpstreamRejected,
        LONG,
    ),
    bedrock(
        400,
        "ValidationException",
        "Malformed input request: #/texts/3: expected maxLength: 2048, actual: 2459, please reformat your input",
        UpstreamRejected,
        LONG,
        position=3,
    ),
    bedrock(
        400,
        "ValidationException",
        "Malformed input request: #/inputText: expected minLength: 1, actual: 0",
        UpstreamRejected,
    ),
    bedrock(
        400,
        "ValidationException",
        "Malformed input request: #: extraneous key [dimensions] is not permitted",
        UpstreamMisconfigured,
    ),
    bedrock(400, "ValidationException", "The provided model identifier is invalid.", UpstreamMisconfigured),
    bedrock(400, "ValidationException", "Input is too long for requested model.", UpstreamRejected, LONG),
    bedrock(400, "ServiceQuotaExceededException", "…", UpstreamAuthFailed, CREDIT),
    bedrock(400, "ExpiredTokenException", "…", UpstreamAuthFailed),
    bedrock(403, "AccessDeniedException", "…", UpstreamAuthFailed),
    bedrock(403, "UnrecognizedClientException", "…", UpstreamAuthFailed),
    bedrock(403, "InvalidSignatureException", "…", UpstreamAuthFailed),
    bedrock(403, "MissingAuthenticationToken", "…", UpstreamAuthFailed),
    bedrock(404, "ResourceNotFoundException", "…", UpstreamMisconfigured),
    bedrock(408, "ModelTimeoutException", "…", UpstreamTimeout),
    bedrock(424, "ModelErrorException", "…", UpstreamUnavailable),
    bedrock(429, "ThrottlingException", "Too many requests, please wait before trying again.", UpstreamRateLimited),
    bedrock(400, "ThrottlingException", "Rate exceeded", UpstreamRateLimited),
    bedrock(429, "ModelNotReadyException", "…", UpstreamOverloaded),
    bedrock(500, "InternalServerException", "…", UpstreamUnavailable),
    bedrock(503, "ServiceUnavailableException", "…", UpstreamOverloaded),
]


@pytest.mark.parametrize(("status", "kind", "row"), BEDROCK, ids=lambda each: str(each))
@pytest.mark.parametrize("name", ["message", "Message"])
def test_an_error_of_bedrock(status: int, kind: str, row: Row, name: str) -> None:
    """The code comes in a header, which the adapter adds to the facts; the text under either spelling."""
    body = {name: row.body["message"]}
    facts = error_facts(status, orjson.dumps(body))
    error = error_from(replace(facts, codes=facts.codes | {kind.lower()}), {})
    assert (type(error), error.code) == (row.means, row.code or row.means.code)
    assert error.offending_position == row.position
    if isinstance(error, UpstreamRejected):
        assert (error.token_limit, error.token_count) == row.numbers
    # Some replies have it in the body.
    assert type(error_from(error_facts(status, orjson.dumps({"__type": kind, **body})), {})) is row.means


INVALID = "Value error, batch size is invalid, it should not be larger than 10.: input.contents"
OTHER_CLOUDS = (
    Row("dashscope", 400, {"code": "InvalidParameter", "message": INVALID}, UpstreamTooLarge, limit="inputs"),
    Row(
        "dashscope",
        400,
        openai(f"<400> InternalError.Algo.InvalidParameter: {INVALID}"),
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row(
        "dashscope",
        400,
        {"code": "InvalidParameter", "message": "Range of input length should be [1, 8192]"},
        UpstreamRejected,
        LONG,
        numbers=(8192, None),
    ),
    Row("dashscope", 400, {"code": "Arrearage", "message": "…"}, UpstreamAuthFailed, CREDIT),
    Row("dashscope", 401, {"code": "InvalidApiKey", "message": "…"}, UpstreamAuthFailed),
    Row("dashscope", 400, {"code": "InvalidApiKey", "message": "…"}, UpstreamAuthFailed),
    Row("dashscope", 404, {"code": "ModelNotFound", "message": "…"}, UpstreamMisconfigured),
    Row("dashscope", 429, {"code": "Throttling", "message": "…"}, UpstreamRateLimited),
    Row("dashscope", 429, {"code": "Throttling.RateQuota", "message": "…"}, UpstreamRateLimited, quota="requests"),
    Row("dashscope", 429, {"code": "Throttling.AllocationQuota", "message": "…"}, UpstreamRateLimited, quota="tokens"),
    Row(
        "cloudflare",
        429,
        {"success": False, "errors": [{"code": 3036, "message": "…"}], "result": None},
        UpstreamAuthFailed,
        CREDIT,
    ),
    Row("cloudflare", 429, {"success": False, "errors": [{"code": 3040, "message": "…"}]}, UpstreamRateLimited),
    Row(
        "cloudflare",
        400,
        {"success": False, "errors": [{"code": 5007, "message": "No such model x or task"}]},
        UpstreamMisconfigured,
    ),
    Row(
        "cloudflare",
        400,
        {"success": False, "errors": [{"code": 7000, "message": "Invalid model"}]},
        UpstreamMisconfigured,
    ),
    Row("openai", 400, {"errors": [{"code": 7000, "message": "Invalid model"}]}, UpstreamRejected),
    Row("cloudflare", 401, {"success": False, "errors": []}, UpstreamAuthFailed),
    Row("perplexity", 429, openai("…"), UpstreamRateLimited),
)


@pytest.mark.parametrize("row", [*GOOGLE, *OTHER_CLOUDS], ids=str)
def test_an_error_of_a_cloud(row: Row) -> None:
    check(row)
