"""What one call is billed: for sure, perhaps, or not at all. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Protocol

from engine.planning import tokens
from models.embedding import Batch, Call, Route
from models.errors import EmbedmillError, UpstreamError
from models.usage import UsageKind

MILLION = Decimal(1_000_000)
CONTROL_TEXT = "embedmill"  # of calls of ours that show whether a route answers at all
MOST_CONTROL_TOKENS = tokens.upper_bound(CONTROL_TEXT)


class Spending(Protocol):
    """What bounds the cost of a run."""

    def check(self, usd: Decimal = Decimal(0)) -> None:
        """Asked before each call. Raises EmbedmillError when no call, or none of so much, may be paid for any more."""

    def billed(self, usd: Decimal) -> None:
        """So much may have been billed beside what is set aside for the inputs."""


@contextmanager
def paid(
    spending: Spending | None, batch: Batch, route: Route, made: Sequence[Call], *, is_ours: bool
) -> Iterator[None]:
    """Around one call, whose attempts are in `made` afterwards: those that brought nothing are paid for.

    What the inputs themselves may cost is set aside; a call of ours (`is_ours`) is paid for before it starts.
    """
    if spending is None:
        yield
        return
    usd = max_cost_of(batch, route)
    spending.check(usd if is_ours else Decimal(0))
    if is_ours:
        spending.billed(usd)
    try:
        yield
    finally:
        in_vain = sum(call.wasted or call.ambiguous for call in made)
        spending.billed(usd * (in_vain - is_ours))


def billed_as(error: BaseException, status: int | None) -> UsageKind | None:
    """What a call that was sent and failed is in the ledger; None: it was surely not billed."""
    if status is None and isinstance(error, EmbedmillError):
        if not isinstance(error, UpstreamError) or not error.sent:
            return None
        status = error.status
    if status is None:
        return UsageKind.AMBIGUOUS
    return UsageKind.WASTED if 200 <= status < 300 else None


def billed(call: Call, kind: UsageKind, batch: Batch, route: Route, reported: int | None) -> Call:
    """The call with what it costs: by the reported tokens, or by an estimate; unanswered, the most that it can cost."""
    count = batch.tokens if reported is None else reported
    cost_usd = (
        max_cost_of(batch, route) if kind is UsageKind.AMBIGUOUS else route.usd_per_million_tokens * count / MILLION
    )
    return replace(
        call,
        wasted=kind is UsageKind.WASTED,
        ambiguous=kind is UsageKind.AMBIGUOUS,
        tokens=count,
        tokens_estimated=reported is None,
        cost_usd=cost_usd,
    )


def max_cost_of(batch: Batch, route: Route) -> Decimal:
    """The most that one call can cost."""
    return route.usd_per_million_tokens * tokens.upper_bound_of(batch) / MILLION
