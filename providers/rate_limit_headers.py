"""Reads rate-limit headers: a provider's quotas, and what is left of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from providers.retry_hints import reset_s

_KINDS = ("requests", "tokens")
_LIMIT_NAMES = frozenset(f"x-ratelimit-limit-{kind}{period}" for kind in _KINDS for period in ("", "-minute"))
# A quota of a minute is whole again within a minute; this allows for rounding. Some vendors put a day's requests under
# the header that others use for a minute's (Groq, 2026-08: 14,400, reset in "2m59.56s"): only the reset tells which.
MAX_MINUTE_RESET_S = 75.0


@dataclass(frozen=True, slots=True)
class RateLimitHeaders:
    """Limits a minute and what is left, of requests and of tokens; None where the headers do not say."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_left: int | None = None
    tokens_left: int | None = None

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Requests and tokens a minute."""
        return self.requests_per_minute, self.tokens_per_minute

    def nearly_spent(self, share: float) -> bool:
        """True when less than this share of some quota is left."""
        pairs = ((self.requests_per_minute, self.requests_left), (self.tokens_per_minute, self.tokens_left))
        return any(limit and left is not None and left < limit * share for limit, left in pairs)


def parse_rate_limit_headers(headers: Mapping[str, str]) -> RateLimitHeaders | None:
    """Read `x-ratelimit-limit-*` and `-remaining-*` (OpenAI and compatible servers); None where there are none.

    A quota that its reset shows to be of an hour or a day is none of a minute, and nothing is read from it. Where the
    header's name says the period (`-requests-minute`, `-tokens-minute`), no reset is needed.
    """
    if _LIMIT_NAMES.isdisjoint(headers):
        return None
    limits: list[int | None] = []
    left: list[int | None] = []
    for kind in _KINDS:
        minute = f"{kind}-minute" if f"x-ratelimit-limit-{kind}-minute" in headers else kind
        of_a_minute = minute != kind or _is_of_a_minute(headers, kind)
        limits.append(_count(headers.get(f"x-ratelimit-limit-{minute}")) if of_a_minute else None)
        left.append(_count(headers.get(f"x-ratelimit-remaining-{minute}")) if of_a_minute else None)
    # Some servers write 0 for no limit.
    return RateLimitHeaders(limits[0] or None, limits[1] or None, left[0], left[1])


def _is_of_a_minute(headers: Mapping[str, str], kind: str) -> bool:
    wait_s = reset_s(headers.get(f"x-ratelimit-reset-{kind}", "").strip(), headers.get("date", ""))
    return wait_s is None or wait_s <= MAX_MINUTE_RESET_S


def _count(text: str | None) -> int | None:
    """A whole number, 0 or more; None for anything else."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
