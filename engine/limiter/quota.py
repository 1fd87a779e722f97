"""How fast calls may start under a quota of so many a minute. Pure arithmetic; docs/decisions/0007-pacing.md says why.

A bucket holds a debt. Starting a call adds its cost; the debt drains at a fixed rate, and a call may start when the
debt, itself included, is within `burst`. So what starts within any minute costs no more than rate x 60 + burst,
whatever the sizes of the calls: that, and a margin for calls that reach the provider late, is made to fit the quota.
"""

from __future__ import annotations

from dataclasses import dataclass

# Shares of a minute's quota.
BURST = 0.022  # what may start at once: one bulk call, what bulk leaves, and room for interactive calls
MARGIN = 0.006  # calls that the provider sees up to 0.2 s late, and the credit below
NEARLY_EMPTY = 0.0025  # bulk calls start at or below this debt: 0.15 s of the rate, so that none of it is lost
CREDIT = 0.002  # how far below nothing a refund may bring the debt
BULK_CALL = 0.015  # the largest bulk call: it must be small against the burst, or interactive calls wait for it

MINUTE_S = 60.0
FOREVER_S = 3600.0


@dataclass(frozen=True, slots=True)
class BucketParams:
    """One bucket: what drains, what may start at once, and at which debt bulk calls may start."""

    per_minute: float
    rate: float  # units a second
    burst: float
    bulk: float
    credit: float

    def shared_by(self, processes: int) -> BucketParams:
        """The same bucket for one of so many processes that cannot ask each other."""
        share = 1.0 / max(processes, 1)
        return BucketParams(
            self.per_minute * share, self.rate * share, self.burst * share, self.bulk * share, self.credit * share
        )


UNLIMITED = BucketParams(0.0, 0.0, 0.0, 0.0, 0.0)
"""No quota: rate 0 stands for it in every rule."""


def of_tokens(per_minute: float | None) -> BucketParams:
    """The bucket for tokens."""
    if not per_minute:
        return UNLIMITED
    rate = per_minute * (1 - BURST - MARGIN) / MINUTE_S
    return BucketParams(per_minute, rate, per_minute * BURST, per_minute * NEARLY_EMPTY, per_minute * CREDIT)


def of_requests(per_minute: float | None) -> BucketParams:
    """The bucket for requests. As each costs exactly 1, a minute holds the whole part of rate x 60 + burst."""
    if not per_minute:
        return UNLIMITED
    # Two requests at once, so that bulk leaves one to interactive calls; of a tiny quota that would waste too much.
    burst = max(per_minute * BURST, min(2.5, 1 + per_minute * 0.025))
    rate = (per_minute + 1 - burst - max(per_minute * MARGIN, 0.05)) / MINUTE_S
    return BucketParams(per_minute, rate, burst, per_minute * NEARLY_EMPTY, per_minute * CREDIT)


def largest_call(tokens_per_minute: int | None, requests_per_minute: int | None) -> int | None:
    """Tokens that one call may hold under a quota: small against it, but enough to use it up with those requests."""
    if not tokens_per_minute:
        return None
    share = BULK_CALL
    if requests_per_minute:
        share = max(share, min(1.0, 1.1 / requests_per_minute))
    return max(1, int(tokens_per_minute * share))


def tightest(configured: int | None, learned: int | None) -> int | None:
    """The lower of two limits, where there are any."""
    given = [limit for limit in (configured, learned) if limit]
    return min(given) if given else None
