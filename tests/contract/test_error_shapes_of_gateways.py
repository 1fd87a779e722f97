"""Every recorded error of the vendors that serve other people's models: what each means."""

from __future__ import annotations

import pytest

from models.errors import (
    UpstreamAuthFailed,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from tests.contract.vendor_errors import Row, check, openai

CREDIT = "upstream_quota"
LONG = "input_too_long"

GATEWAYS = (
    Row("together", 401, openai("Invalid API key provided."), UpstreamAuthFailed),
    Row("together", 422, {"model": "m", "job_id": "1", "error": "Invalid model x"}, UpstreamMisconfigured),
    Row("together", 429, {"error": "…"}, UpstreamRateLimited, headers={"x-ratelimit-reset": "7"}, wait_s=7.0),
    Row("together", 503, {"error": {"message": "…", "type": "service_unavailable"}}, UpstreamOverloaded),
    Row("fireworks", 400, {"error": "Invalid model x"}, UpstreamMisconfigured),
    Row(
        "fireworks",
        401,
        {"fault": {"faultstring": "Invalid ApiKey", "detail": {"errorcode": "oauth.v2.InvalidApiKey"}}},
        UpstreamAuthFailed,
    ),
    Row(
        "fireworks",
        400,
        {"fault": {"faultstring": "Invalid model x", "detail": {"errorcode": "x"}}},
        UpstreamMisconfigured,
    ),
    Row(
        "fireworks",
        400,
        {"fault": {"faultstring": "…", "detail": {"errorcode": "model_not_found"}}},
        UpstreamMisconfigured,
    ),
    Row("fireworks", 402, {"error": "…"}, UpstreamAuthFailed, CREDIT),
    Row("fireworks", 413, {"error": "…"}, UpstreamTooLarge, limit="bytes"),
    Row("deepinfra", 404, {"detail": {"error": "Model is not available"}}, UpstreamMisconfigured),
    Row("deepinfra", 422, {"detail": {"error": "Invalid model x"}}, UpstreamMisconfigured),
    Row("deepinfra", 429, {"detail": {"error": "Requests rate limit exceeded"}}, UpstreamRateLimited, quota="requests"),
    Row("openrouter", 400, {"error": {"code": 400, "message": "…", "metadata": {}}}, UpstreamRejected),
    Row("openrouter", 401, {"error": {"code": 401, "message": "…"}}, UpstreamAuthFailed),
    Row("openrouter", 402, {"error": {"code": 402, "message": "…"}, "user_id": "u"}, UpstreamAuthFailed, CREDIT),
    Row("openrouter", 408, {"error": {"code": 408, "message": "…"}}, UpstreamTimeout),
    Row("openrouter", 413, {"error": {"code": 413, "message": "…"}}, UpstreamTooLarge, limit="bytes"),
    Row(
        "openrouter",
        429,
        {
            "error": {
                "code": 429,
                "message": "…",
                "metadata": {"headers": {"X-RateLimit-Limit": "20", "X-RateLimit-Reset": "1792567690000"}},
            }
        },
        UpstreamRateLimited,
        headers={"date": "Wed, 21 Oct 2026 07:28:00 GMT"},
        wait_s=10.0,
    ),
    Row("openrouter", 502, {"error": {"code": 502, "message": "…"}}, UpstreamUnavailable),
    Row("openrouter", 524, {"error": {"code": 524, "message": "…"}}, UpstreamTimeout),
    Row("openrouter", 529, {"error": {"code": 529, "message": "…"}}, UpstreamOverloaded),
    Row("mixedbread", 404, {"type": "model_not_found_error", "message": "…", "url": "…"}, UpstreamMisconfigured),
    Row("mixedbread", 400, {"type": "model_not_found_error", "message": "…"}, UpstreamMisconfigured),
    Row("mixedbread", 429, {"type": "too_many_requests_error", "message": "…"}, UpstreamRateLimited),
    Row(
        "nim",
        400,
        {
            "object": "error",
            "message": "Input length 548 exceeds maximum allowed token size 512",
            "detail": {},
            "type": "invalid_request_error",
        },
        UpstreamRejected,
        LONG,
        numbers=(512, 548),
    ),
    Row("nim", 400, {"object": "error", "message": "'input_type' parameter is required"}, UpstreamMisconfigured),
    Row(
        "nim",
        422,
        {"detail": [{"loc": ["body", "dimensions"], "msg": "…", "type": "extra_forbidden"}]},
        UpstreamMisconfigured,
    ),
    Row("nim", 402, {"status": 402, "title": "Payment Required", "detail": "…"}, UpstreamAuthFailed, CREDIT),
    Row("databricks", 400, {"error_code": "BAD_REQUEST", "message": "…"}, UpstreamRejected),
    Row("databricks", 403, {"error_code": "PERMISSION_DENIED", "message": "…"}, UpstreamAuthFailed),
    Row("databricks", 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "…"}, UpstreamMisconfigured),
    Row("databricks", 429, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "…"}, UpstreamRateLimited),
    Row("snowflake", 400, {"message": "unknown model x", "code": "399505"}, UpstreamMisconfigured),
    Row("snowflake", 401, {"message": "JWT token is invalid", "code": "390144"}, UpstreamAuthFailed),
    Row("snowflake", 429, {"message": "too many requests"}, UpstreamRateLimited),
)


@pytest.mark.parametrize("row", GATEWAYS, ids=str)
def test_an_error_of_a_gateway(row: Row) -> None:
    check(row)
