"""What answers 429 teach about a provider's real quotas: a share of the stated ones that all calls keep to. Pure.

A 429 comes when the provider has accepted a minute's quota, so what it accepted in the last minute is the quota. The
share falls to that with each new 429, and rises again by itself. `script.py` does the same in Lua.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from engine.limiter.quota import MINUTE_S, BucketParams

KINDS = ("tokens", "requests")
BUCKET_S = 5.0
BUCKETS = 13  # those of a minute, and the part of one in which the minute began

# What is left of the share where the provider had accepted no less than the share allows: once in a while a call is
# only late. Where the last fall is a moment ago, the provider counts in another way than by the last minute.
ONCE = 0.98
AGAIN = 0.9
AGAIN_S = 20.0
SPARE = 1.25  # of what was used, that is left of the quota which is less likely the one that is used up
MOST_AT_ONCE = 0.25  # what a 429 leaves at the least, however little was used: the reason may be another
LEAST = 1 / 64
QUIET_S = 120.0  # without a new 429, until the share rises again
RISE_PER_S = 0.05 / MINUTE_S
# Who says that it may be asked again after more than this refuses for another reason than a minute's quota.
LONGEST_MINUTE_S = 90.0


@dataclass(frozen=True, slots=True)
class Learned:
    """The share of one quota, and when it fell last."""

    share: float = 1.0
    at: float = -math.inf

    def now(self, now: float) -> float:
        return risen(self.share, now - self.at)


WHOLE = (Learned(), Learned())
"""Of tokens and of requests: nothing was learned."""


def risen(share: float, passed_s: float) -> float:
    """The share so many seconds after it fell last."""
    return min(1.0, share + RISE_PER_S * max(0.0, passed_s - QUIET_S)) if share < 1.0 else 1.0


def lowered(share: float, used: float, passed_s: float) -> float:
    """The share after a new 429; `used`: what was accepted in the last minute, as a share of the stated quota."""
    most = share * (AGAIN if passed_s < AGAIN_S else ONCE)
    return max(LEAST, share * MOST_AT_ONCE, min(used, most))


def after_refusal(
    learned: tuple[Learned, Learned], used: tuple[float | None, float | None], kind: str, now: float
) -> tuple[Learned, Learned]:
    """What a new 429 makes of the shares. `used` as in `lowered`, None where there is no such quota.

    `kind` names the quota that was used up, where the provider says it. Else that falls which is fuller, as far as is
    known; and the other to little more than what is used of it, where that fell a moment ago and has not helped.
    """
    shares = (learned[0].now(now), learned[1].now(now))
    fullness = [-1.0 if part is None else part / share for part, share in zip(used, shares, strict=True)]
    fuller = KINDS.index(kind) if kind and used[KINDS.index(kind)] is not None else int(fullness[1] > fullness[0])
    own, other = used[fuller], used[1 - fuller]
    if own is None:
        return learned
    passed_s = now - learned[fuller].at
    fallen = list(learned)
    fallen[fuller] = Learned(lowered(shares[fuller], own, passed_s), now)
    if not kind and other is not None and passed_s < AGAIN_S:
        spare = max(LEAST, min(shares[1 - fuller], other * SPARE))
        fallen[1 - fuller] = Learned(spare, now) if spare < 1.0 else learned[1 - fuller]
    return fallen[0], fallen[1]


def shape_of(shape: BucketParams, share: float, least: float) -> BucketParams:
    """The bucket for a share of the quota. Of requests (`least` 1) the burst must still let one start."""
    if share >= 1.0 or not shape.rate:
        return shape
    burst = least + share * (shape.burst - least)
    return replace(
        shape,
        per_minute=shape.per_minute * share,
        rate=shape.rate * share,
        burst=burst,
        bulk=shape.bulk * share,
        credit=shape.credit * share,
    )


@dataclass(slots=True)
class Accepted:
    """Tokens and requests of the last minute that the provider did not refuse, in buckets of 5 s."""

    _buckets: list[tuple[int, float, float]] = field(default_factory=lambda: [(-1, 0.0, 0.0)] * BUCKETS)

    def add(self, tokens: float, requests: float, now: float) -> None:
        number = int(now // BUCKET_S)
        known, had_tokens, had_requests = self._buckets[number % BUCKETS]
        if known != number:
            had_tokens = had_requests = 0.0
        self._buckets[number % BUCKETS] = (number, had_tokens + tokens, had_requests + requests)

    def assume(self, tokens_per_s: float, requests_per_s: float, now: float) -> None:
        """Nothing is known of the last minute: take it that this much was accepted."""
        number = int(now // BUCKET_S)
        for each in range(number - BUCKETS + 1, number + 1):
            whole = BUCKET_S if each < number else now % BUCKET_S
            self._buckets[each % BUCKETS] = (each, tokens_per_s * whole, requests_per_s * whole)

    def of_last_minute(self, now: float) -> tuple[float, float]:
        """Tokens and requests."""
        number, running = int(now // BUCKET_S), (now % BUCKET_S) / BUCKET_S
        tokens = requests = 0.0
        for known, had_tokens, had_requests in self._buckets:
            if number - BUCKETS < known <= number:
                part = 1.0 - running if known == number - BUCKETS + 1 else 1.0
                tokens += had_tokens * part
                requests += had_requests * part
        return tokens, requests
