"""What each known error of OpenAI means, by status, code and words."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from models.errors import (
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTooLarge,
)
from providers.base import UpstreamReply
from providers.openai import OpenAIProvider

PROVIDER = OpenAIProvider()


def fault(status: int, error: dict[str, Any] | str, headers: dict[str, str] | None = None) -> UpstreamError:
    return PROVIDER.error_from(UpstreamReply(status, headers or {}, orjson.dumps({"error": error})))


TOO_LONG_OLD = (
    "This model's maximum context length is 8192 tokens, however you requested 51435 tokens (51435 in your prompt"
)


@pytest.mark.parametrize(
    ("error", "kind", "code", "offending_position"),
    [
        ({"message": TOO_LONG_OLD, "code": None}, UpstreamRejected, "input_too_long", None),
        (
            {"message": "Invalid 'input[3]': maximum input length is 8192 tokens."},
            UpstreamRejected,
            "input_too_long",
            3,
        ),
        (
            {"message": "Invalid 'input': maximum input length is 8192 tokens."},
            UpstreamRejected,
            "input_too_long",
            None,
        ),
        (
            {
                "message": "Requested 453357 tokens, max 300000 tokens per request",
                "type": "max_tokens_per_request",
                "code": "max_tokens_per_request",
            },
            UpstreamTooLarge,
            "upstream_too_large",
            None,
        ),
        (
            {"message": "Invalid 'input': maximum request size is 300000 tokens per request."},
            UpstreamTooLarge,
            "upstream_too_large",
            None,
        ),
        ({"message": "array too long", "code": "array_above_max_length"}, UpstreamTooLarge, "upstream_too_large", None),
        ({"message": "'$.input' is invalid. See the reference."}, UpstreamRejected, "upstream_rejected", None),
        ({"message": "-1 is less than the minimum of 1 - 'dimensions'"}, UpstreamMisconfigured, None, None),
        ("plain words", UpstreamRejected, "upstream_rejected", None),
    ],
)
def test_a_400_by_its_words(
    error: Any, kind: type[UpstreamError], code: str | None, offending_position: int | None
) -> None:
    said = fault(400, error)
    assert type(said) is kind and said.offending_position == offending_position and (code is None or said.code == code)


@pytest.mark.parametrize("error", [{"code": "insufficient_quota"}, {"type": "insufficient_quota"}])
def test_no_credit_is_not_a_rate_limit(error: dict[str, str]) -> None:
    said = fault(429, {"message": "You exceeded your current quota, please check your plan.", **error})
    assert isinstance(said, UpstreamAuthFailed) and said.code == "upstream_quota"


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, "", 1.5),
        ({"retry-after": "2.5"}, "", 2.5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, "", 30.0),
        ({"retry-after": "6m0s"}, "", 120.0),
        ({}, "Rate limit reached. Please try again in 2.812s. Visit the site.", 2.812),
        ({}, "Rate limit reached.", None),
    ],
)
def test_when_to_come_back(headers: dict[str, str], message: str, seconds: float | None) -> None:
    said = fault(429, {"message": message, "code": "rate_limit_exceeded"}, headers)
    assert isinstance(said, UpstreamRateLimited) and said.retry_after_s == seconds


@pytest.mark.parametrize("status", [408, 499, 504, 524])
def test_running_out_of_time(status: int) -> None:
    assert isinstance(fault(status, {"message": "timeout"}), UpstreamTimeout)


@pytest.mark.parametrize(
    ("status", "message", "limit"),
    [
        (413, "Request body too large.", "bytes"),
        (413, "batch size 64 > maximum allowed batch size 32", "inputs"),
        (422, "batch size 64 > maximum allowed batch size 32", "inputs"),
        (400, "'$.input' is invalid. The array length must be 2048 or less.", "inputs"),
        (400, "Requested 453357 tokens, maximum request size is 300000 tokens", "tokens"),
    ],
)
def test_too_large_for_what(status: int, message: str, limit: str) -> None:
    said = fault(status, {"message": message})
    assert isinstance(said, UpstreamTooLarge) and said.limit == limit
