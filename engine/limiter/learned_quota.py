"""Learns a provider's real quotas from 429s: a share of each stated quota that all calls keep to. Pure.

A 429 comes when the provider has accepted a minute's quota, so what it accepted in the last minute is the real quota.
Each new 429 lowers the share to that; without 429s the share recovers by itself. `lua.py` does the same in Lua.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from engine.limiter.quota import MINUTE_S, BucketParams

QUOTA_KINDS = ("tokens", "requests")
BUCKET_S = 5.0
BUCKETS = 13  # the twelve of a minute, and the one in which the minute began

# Factor of the share where the provider had accepted no less than the share allows: now and then a call is only late.
FIRST_DECREASE = 0.98
# The same where the last decrease was a moment ago: the provider does not count by a sliding minute.
REPEATED_DECREASE = 0.9
REPEATED_WITHIN_S = 20.0
OTHER_QUOTA_MARGIN = 1.25  # the other quota, less likely the cause, is lowered to this multiple of what was used
MIN_FACTOR = 0.25  # one 429 lowers a share by no more, however little was used: the cause may be another
MIN_SHARE = 1 / 64
STEADY_S = 120.0  # so long without a new 429, then the share recovers
RECOVERY_PER_S = 0.05 / MINUTE_S
# A longer Retry-After means that something else than a minute's quota is used up.
MAX_QUOTA_COOLDOWN_S = 90.0


@dataclass(frozen=True, slots=True)
class LearnedShare:
    """The usable share of one stated quota, and when it was lowered last."""

    share: float = 1.0
    lowered_at: float = -math.inf

    def now(self, now: float) -> float:
        """The share at this time."""
        return recovered_share(self.share, now - self.lowered_at)


NOTHING_LEARNED = (LearnedShare(), LearnedShare())
"""Of tokens and of requests."""


def recovered_share(share: float, passed_s: float) -> float:
    """The share so many seconds after it was lowered last."""
    return min(1.0, share + RECOVERY_PER_S * max(0.0, passed_s - STEADY_S)) if share < 1.0 else 1.0


def lowered_share(share: float, used: float, passed_s: float) -> float:
    """The share after a new 429.

    `used`: what was accepted in the last minute, as a share of the stated quota; `passed_s`: since the last decrease.
    """
    ceiling = share * (REPEATED_DECREASE if passed_s < REPEATED_WITHIN_S else FIRST_DECREASE)
    return max(MIN_SHARE, share * MIN_FACTOR, min(used, ceiling))


def after_refusal(
    learned: tuple[LearnedShare, LearnedShare], used: tuple[float | None, float | None], kind: str, now: float
) -> tuple[LearnedShare, LearnedShare]:
    """The shares after a new 429. `used` as in `lowered_share`, None where there is no such quota.

    `kind` names the quota that is used up, where the provider says it. Else the fuller quota is lowered; and where that
    was lowered a moment ago without effect, the other is lowered to a little more than what is used of it.
    """
    shares = (learned[0].now(now), learned[1].now(now))
    fullness = [-1.0 if part is None else part / share for part, share in zip(used, shares, strict=True)]
    is_named = bool(kind) and used[QUOTA_KINDS.index(kind)] is not None
    fuller = QUOTA_KINDS.index(kind) if is_named else int(fullness[1] > fullness[0])
    own, other = used[fuller], used[1 - fuller]
    if own is None:
        return learned
    passed_s = now - learned[fuller].lowered_at
    lowered = list(learned)
    lowered[fuller] = LearnedShare(lowered_share(shares[fuller], own, passed_s), now)
    if not kind and other is not None and passed_s < REPEATED_WITHIN_S:
        share = max(MIN_SHARE, min(shares[1 - fuller], other * OTHER_QUOTA_MARGIN))
        lowered[1 - fuller] = LearnedShare(share, now) if share < 1.0 else learned[1 - fuller]
    return lowered[0], lowered[1]


def params_for_share(params: BucketParams, share: float, min_burst: float) -> BucketParams:
    """The bucket for a share of the quota. Of requests (`min_burst` 1) the burst must still admit one."""
    if share >= 1.0 or not params.rate:
        return params
    burst = min_burst + share * (params.burst - min_burst)
    return replace(
        params,
        per_minute=params.per_minute * share,
        rate=params.rate * share,
        burst=burst,
        bulk_threshold=params.bulk_threshold * share,
        max_credit=params.max_credit * share,
    )


@dataclass(slots=True)
class AcceptedUsage:
    """Tokens and requests of the last minute that the provider did not refuse, in buckets of 5 s."""

    _buckets: list[tuple[int, float, float]] = field(default_factory=lambda: [(-1, 0.0, 0.0)] * BUCKETS)

    def add(self, tokens: float, requests: float, now: float) -> None:
        """Count a call that the provider accepted."""
        number = int(now // BUCKET_S)
        stored, old_tokens, old_requests = self._buckets[number % BUCKETS]
        if stored != number:
            old_tokens = old_requests = 0.0
        self._buckets[number % BUCKETS] = (number, old_tokens + tokens, old_requests + requests)

    def assume(self, tokens_per_s: float, requests_per_s: float, now: float) -> None:
        """Fill the last minute, of which nothing is known, with calls at this rate."""
        number = int(now // BUCKET_S)
        for each in range(number - BUCKETS + 1, number + 1):
            seconds = BUCKET_S if each < number else now % BUCKET_S
            self._buckets[each % BUCKETS] = (each, tokens_per_s * seconds, requests_per_s * seconds)

    def of_last_minute(self, now: float) -> tuple[float, float]:
        """Tokens and requests."""
        number, running = int(now // BUCKET_S), (now % BUCKET_S) / BUCKET_S
        tokens = requests = 0.0
        for stored, old_tokens, old_requests in self._buckets:
            if number - BUCKETS < stored <= number:
                part = 1.0 - running if stored == number - BUCKETS + 1 else 1.0
                tokens += old_tokens * part
                requests += old_requests * part
        return tokens, requests
