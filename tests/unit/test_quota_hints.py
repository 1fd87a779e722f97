"""What is read from a provider's rate-limit headers, and what is not believed."""

from __future__ import annotations

import pytest

from providers import PROVIDERS
from providers.base import UpstreamReply
from providers.quota_hints import QuotaHint, quota_hint
from providers.retry_hints import CEILING_S, retry_after_s

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"  # 1792567680


def of(limit: str, left: str = "1", kind: str = "tokens") -> dict[str, str]:
    return {f"x-ratelimit-limit-{kind}": limit, f"x-ratelimit-remaining-{kind}": left}


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({}, None),
        ({"x-ratelimit-remaining-tokens": "5"}, None),
        (of("1000", "900"), QuotaHint(None, 1000, None, 900)),
        (of("60", "0", "requests") | of("1000"), QuotaHint(60, 1000, 0, 1)),
        (of("0"), QuotaHint(None, None, None, 1)),  # no limit, in some servers' words
        (of("-1", "-1"), QuotaHint()),
        (of("many", "²"), QuotaHint()),
        (of("9" * 30), QuotaHint(tokens_left=1)),
    ],
)
def test_limits_and_what_is_left(headers: dict[str, str], hint: QuotaHint | None) -> None:
    assert quota_hint(headers) == hint
    assert PROVIDERS["openai"].quota(UpstreamReply(200, headers, b"")) == hint


def test_a_quota_that_somebody_else_uses_up_is_noticed() -> None:
    assert QuotaHint(tokens_per_minute=1000, tokens_left=2).nearly_spent(0.003)
    assert not QuotaHint(tokens_per_minute=1000, tokens_left=3).nearly_spent(0.003)
    assert QuotaHint(100, 1000, 0, 900).nearly_spent(0.003)
    assert not QuotaHint(tokens_left=0).nearly_spent(0.003) and not QuotaHint(100, 1000).nearly_spent(0.003)


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
        ({"x-ratelimit-reset": "86400"}, CEILING_S),
        ({"retry-after": "2", "x-ratelimit-reset": "50"}, 2.0),
    ],
)
def test_a_reset_is_the_last_hint_that_is_looked_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds
