"""What a provider's headers say about its quotas: the limits, and what is left of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_KINDS = ("requests", "tokens")


@dataclass(frozen=True, slots=True)
class QuotaHint:
    """Limits a minute and what is left, of requests and of tokens; None where nothing is said."""

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


def quota_hint(headers: Mapping[str, str]) -> QuotaHint | None:
    """Read `x-ratelimit-limit-*` and `-remaining-*` (OpenAI, and who follows it); None where there are none."""
    if not any(f"x-ratelimit-limit-{kind}" in headers for kind in _KINDS):
        return None
    limits = [_count(headers.get(f"x-ratelimit-limit-{kind}")) for kind in _KINDS]
    left = [_count(headers.get(f"x-ratelimit-remaining-{kind}")) for kind in _KINDS]
    # A limit of nothing is how some servers write that there is none.
    return QuotaHint(limits[0] or None, limits[1] or None, left[0], left[1])


def _count(text: str | None) -> int | None:
    """A whole number, 0 or more; anything else is not believed."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
