"""The cost of a call, and whether a failed one is billed, possibly billed, or not billed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Protocol

from engine.planning import token_estimator
from models.embedding import Batch, Call, Route
from models.errors import EmbedmillError, UpstreamError
from models.usage import UsageKind

MILLION = Decimal(1_000_000)
CONTROL_TEXT = "embedmill"  # of control calls, which show whether a route answers at all
MAX_CONTROL_TOKENS = token_estimator.upper_bound(CONTROL_TEXT)


class Spending(Protocol):
    """Bounds the cost of a run."""

    def check(self, usd: Decimal = Decimal(0)) -> None:
        """Called before each call. Raises EmbedmillError when the budget covers no more calls, or not this amount."""

    def billed(self, usd: Decimal) -> None:
        """So much may have been billed beyond what is reserved for the inputs."""


@contextmanager
def paid(
    spending: Spending | None, batch: Batch, route: Route, made: Sequence[Call], *, is_control: bool
) -> Iterator[None]:
    """Around one call, which appends its attempts to `made`: those that brought no vectors are debited.

    The cost of the inputs themselves is reserved before; a control call is debited before it starts. Raises what
    `spending.check` raises.
    """
    if spending is None:
        yield
        return
    usd = max_cost_of(batch, route)
    spending.check(usd if is_control else Decimal(0))
    if is_control:
        spending.billed(usd)
    try:
        yield
    finally:
        without_result = sum(call.wasted or call.ambiguous for call in made)
        spending.billed(usd * (without_result - is_control))


def usage_kind_of(error: BaseException, status: int | None) -> UsageKind | None:
    """The kind of ledger row of a call that was sent and failed; None: it was surely not billed.

    `status`: of the reply, where one has come.
    """
    if status is None and isinstance(error, EmbedmillError):
        if not isinstance(error, UpstreamError) or not error.sent:
            return None
        status = error.status
    if status is None:
        return UsageKind.AMBIGUOUS
    return UsageKind.WASTED if 200 <= status < 300 else None


def with_cost(call: Call, kind: UsageKind, batch: Batch, route: Route, reported: int | None) -> Call:
    """The call with its cost: by the reported tokens, else by the estimate; an ambiguous call at its highest cost."""
    count = batch.tokens if reported is None else reported
    cost_usd = max_cost_of(batch, route) if kind is UsageKind.AMBIGUOUS else cost_of(count, route)
    return replace(
        call,
        wasted=kind is UsageKind.WASTED,
        ambiguous=kind is UsageKind.AMBIGUOUS,
        tokens=count,
        tokens_estimated=reported is None,
        cost_usd=cost_usd,
        usd_per_million_tokens=route.usd_per_million_tokens,
    )


def cost_of(count: int, route: Route) -> Decimal:
    """The price of so many tokens on the route, in USD."""
    return route.usd_per_million_tokens * count / MILLION


def max_cost_of(batch: Batch, route: Route) -> Decimal:
    """The highest possible cost of one call, in USD."""
    return cost_of(token_estimator.upper_bound_of(batch), route)
