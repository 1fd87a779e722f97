"""How fast calls may start under a quota per minute. Pure arithmetic; docs/decisions/0007-pacing.md gives the reasons.

A token bucket, kept as a debt. Starting a call adds its cost; the debt drains at a fixed rate, and a call may start
when the debt, itself included, is within `burst`. So the calls that start within any minute cost no more than
rate x 60 + burst, whatever their sizes. The parameters make that, and a margin for calls that reach the provider late,
fit the quota.
"""

from __future__ import annotations

from dataclasses import dataclass

# Shares of a minute's quota (docs/decisions/0007-pacing.md).
BURST = 0.022  # may start at once: one bulk call, the headroom that bulk leaves, and room for interactive calls
MARGIN = 0.006  # for calls that the provider counts up to 0.2 s late, and for the credit below
NEARLY_EMPTY = 0.0025  # bulk calls start at or below this debt: 0.15 s of the rate, so that none of it is lost
CREDIT = 0.002  # how far below zero a refund may bring the debt
BULK_CALL = 0.015  # the largest bulk call: small against the burst, or interactive calls wait for it

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class BucketParams:
    """Parameters of one token bucket, in units (tokens or requests)."""

    per_minute: float  # the quota
    rate: float  # units drained a second
    burst: float  # units that may start at once
    bulk_threshold: float  # bulk calls start at or below this debt
    max_credit: float  # how far below zero a refund may bring the debt

    def split_among(self, processes: int) -> BucketParams:
        """The bucket of one of so many processes that share the quota without talking to each other."""
        share = 1.0 / max(processes, 1)
        return BucketParams(
            self.per_minute * share,
            self.rate * share,
            self.burst * share,
            self.bulk_threshold * share,
            self.max_credit * share,
        )


UNLIMITED = BucketParams(0.0, 0.0, 0.0, 0.0, 0.0)
"""No quota. Every rule reads rate 0 as that."""


def token_bucket(per_minute: float | None) -> BucketParams:
    """The bucket for a quota of tokens."""
    if not per_minute:
        return UNLIMITED
    rate = per_minute * (1 - BURST - MARGIN) / MINUTE_S
    return BucketParams(per_minute, rate, per_minute * BURST, per_minute * NEARLY_EMPTY, per_minute * CREDIT)


def request_bucket(per_minute: float | None) -> BucketParams:
    """The bucket for a quota of requests.

    Each request costs exactly 1, so a minute admits the whole part of rate x 60 + burst.
    """
    if not per_minute:
        return UNLIMITED
    # Two requests at once, so that bulk leaves one to interactive calls; with a tiny quota that would waste too much.
    burst = max(per_minute * BURST, min(2.5, 1 + per_minute * 0.025))
    rate = (per_minute + 1 - burst - max(per_minute * MARGIN, 0.05)) / MINUTE_S
    return BucketParams(per_minute, rate, burst, per_minute * NEARLY_EMPTY, per_minute * CREDIT)


def max_call_tokens(tokens_per_minute: int | None, requests_per_minute: int | None) -> int | None:
    """Tokens that one bulk call may hold: few against the quota, but enough to use it up with those requests."""
    if not tokens_per_minute:
        return None
    share = BULK_CALL
    if requests_per_minute:
        share = max(share, min(1.0, 1.1 / requests_per_minute))
    return max(1, int(tokens_per_minute * share))


def min_limit(configured: int | None, learned: int | None) -> int | None:
    """The lower of two limits; None or 0 is no limit."""
    limits = [limit for limit in (configured, learned) if limit]
    return min(limits) if limits else None
