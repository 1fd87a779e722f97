"""What is read from a provider's rate-limit headers, and what is not believed."""

from __future__ import annotations

import pytest

from providers import PROVIDERS
from providers.base import UpstreamReply
from providers.rate_limit_headers import RateLimitHeaders, parse_rate_limit_headers
from providers.retry_hints import retry_after_s

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"  # 1792567680


def of(limit: str, left: str = "1", kind: str = "tokens") -> dict[str, str]:
    return {f"x-ratelimit-limit-{kind}": limit, f"x-ratelimit-remaining-{kind}": left}


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({}, None),
        ({"x-ratelimit-remaining-tokens": "5"}, None),
        (of("1000", "900"), RateLimitHeaders(None, 1000, None, 900)),
        (of("60", "0", "requests") | of("1000"), RateLimitHeaders(60, 1000, 0, 1)),
        (of("0"), RateLimitHeaders(None, None, None, 1)),  # no limit, in some servers' words
        (of("-1", "-1"), RateLimitHeaders()),
        (of("many", "²"), RateLimitHeaders()),
        (of("9" * 30), RateLimitHeaders(tokens_left=1)),
        # Groq: requests of a day and tokens of a minute, under the same names.
        (
            of("14400", "14370", "requests")
            | of("18000", "17997")
            | {"x-ratelimit-reset-requests": "2m59.56s", "x-ratelimit-reset-tokens": "7.66s"},
            RateLimitHeaders(None, 18000, None, 17997),
        ),
        (of("500", "20", "requests") | {"x-ratelimit-reset-requests": "86400"}, RateLimitHeaders()),
        (of("500", "20", "requests") | {"x-ratelimit-reset-requests": "1h0m0s"}, RateLimitHeaders()),
        (of("500", "20", "requests") | {"x-ratelimit-reset-requests": "1792570000", "date": DATE}, RateLimitHeaders()),
        (of("500", "20", "requests") | {"x-ratelimit-reset-requests": "60"}, RateLimitHeaders(500, None, 20, None)),
        (of("500", "20", "requests") | {"x-ratelimit-reset-requests": "soon"}, RateLimitHeaders(500, None, 20, None)),
        (of("500", "20", "requests-minute") | of("9", "1", "requests"), RateLimitHeaders(500, None, 20, None)),
    ],
)
def test_limits_and_what_is_left(headers: dict[str, str], hint: RateLimitHeaders | None) -> None:
    assert parse_rate_limit_headers(headers) == hint
    assert PROVIDERS["openai"].rate_limits(UpstreamReply(200, headers, b"")) == hint


def test_a_quota_that_somebody_else_uses_up_is_noticed() -> None:
    assert RateLimitHeaders(tokens_per_minute=1000, tokens_left=2).nearly_spent(0.003)
    assert not RateLimitHeaders(tokens_per_minute=1000, tokens_left=3).nearly_spent(0.003)
    assert RateLimitHeaders(100, 1000, 0, 900).nearly_spent(0.003)
    assert not RateLimitHeaders(tokens_left=0).nearly_spent(0.003) and not RateLimitHeaders(100, 1000).nearly_spent(
        0.003
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-reset": "7"}, 7.0),
        ({"x-ratelimit-reset": "1792567690", "date": DATE}, 10.0),
        ({"x-ratelimit-reset": "1792567690500", "date": DATE}, 10.5),
        ({"x-ratelimit-reset": "1792567690"}, None),
        ({"x-ratelimit-reset": "1792000000", "date": DATE}, None),
        ({"x-ratelimit-reset": "tomorrow"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m1.5s"}, 61.5),
        ({"x-ratelimit-remaining-tokens": "3", "x-ratelimit-reset-tokens": "9s"}, None),
        ({"x-ratelimit-reset": "86400"}, 120.0),
        ({"retry-after": "2", "x-ratelimit-reset": "50"}, 2.0),
    ],
)
def test_a_reset_is_the_last_hint_that_is_looked_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds
