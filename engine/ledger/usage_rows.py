"""Ledger rows: what each upstream call is billed for, and what came of it. Pure.

Results that were taken make one `delivered` row for each route, price and record. A call that was billed in vain, or
may have been, is a row of its own, known by the call's id, so that it can be written twice and is counted once.
Providers do not bill a reply that is not a 2xx (docs/providers.md): such calls have no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from models.base import PICODOLLAR, random_id
from models.embedding import BatchOutcome, Call
from models.usage import UsageKind

# The columns' own bounds. A number beyond them is cut down to them: a row is never lost because of a number.
MAX_TOKENS = 2**63 - 1
MAX_USD = Decimal(2**63 - 1) * PICODOLLAR
MAX_COUNT = 2**31 - 1
# The price of a route that is known only by its names. The column is null then.
UNKNOWN_PRICE = Decimal("NaN")


def delivered(
    parts: Sequence[BatchOutcome],
    *,
    project: str,
    key_id: str,
    lane: str,
    alias: str,
    user: str | None = None,
    job_id: str | None = None,
    kind: UsageKind = UsageKind.DELIVERED,
    code: str | None = None,
    row_id: str = "",
) -> list[dict[str, Any]]:
    """Rows of outcomes: one for each route that served a part of them.

    `kind` and `code` are for results that were not delivered. `row_id`: the prefix of the rows' ids, so that the same
    record gives the same ids again; by default ids are random.
    """
    by_route: dict[tuple[str, str, Decimal], _Sum] = {}
    for part in parts:
        if part.route is not None:
            key = (*part.route.key, part.route.usd_per_million_tokens)
            if key in by_route:
                by_route[key].add(part)
            else:
                by_route[key] = _Sum(part)
    return [
        _row(
            id=f"{row_id}{number}" if row_id else random_id("use"),
            project=project,
            key_id=key_id,
            lane=lane,
            job_id=job_id,
            alias=alias,
            provider=provider,
            upstream_model=upstream_model,
            user=user,
            inputs=served.inputs,
            calls=served.calls,
            tokens=served.tokens,
            cost_usd=served.cost_usd,
            price=price,
            estimated=served.estimated,
            kind=kind,
            code=code,
        )
        for number, ((provider, upstream_model, price), served) in enumerate(by_route.items())
    ]


class _Sum:
    """What one route served."""

    __slots__ = ("calls", "cost_usd", "estimated", "inputs", "tokens")

    def __init__(self, part: BatchOutcome) -> None:
        self.calls = 1
        self.inputs = len(part.indexes)
        self.tokens = part.tokens
        self.cost_usd = part.cost_usd
        self.estimated = part.tokens_estimated

    def add(self, part: BatchOutcome) -> None:
        self.calls += 1
        self.inputs += len(part.indexes)
        self.tokens += part.tokens
        self.cost_usd += part.cost_usd
        self.estimated = self.estimated or part.tokens_estimated


def of_calls(
    calls: Iterable[Call],
    *,
    project: str,
    key_id: str,
    lane: str,
    alias: str,
    user: str | None = None,
    job_id: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of the calls that are wasted or ambiguous. A row's id is its call's id."""
    return [
        _row(
            id=call.id,
            project=project,
            key_id=key_id,
            lane=lane,
            job_id=job_id,
            alias=alias,
            provider=call.provider,
            upstream_model=call.upstream_model,
            user=user,
            inputs=call.inputs,
            calls=1,
            tokens=call.tokens,
            cost_usd=call.cost_usd,
            price=call.usd_per_million_tokens,
            estimated=call.tokens_estimated,
            kind=UsageKind.WASTED if call.wasted else UsageKind.AMBIGUOUS,
            code=call.error,
        )
        for call in calls
        if call.wasted or call.ambiguous
    ]


def _row(
    *,
    user: str | None,
    tokens: int,
    cost_usd: Decimal,
    price: Decimal | None,
    inputs: int,
    code: str | None,
    **row: Any,
) -> dict[str, Any]:
    return row | {
        # The column's name: Core drops keys that it does not know.
        "end_user": None if user is None else _storable(user),
        "inputs": min(inputs, MAX_COUNT),
        "prompt_tokens": min(max(tokens, 0), MAX_TOKENS),
        # Rounded only here: the sum of the rows is what was charged, to the picodollar.
        "cost_usd": _storable_usd(cost_usd),
        "usd_per_million_tokens": None if price is None or price.is_nan() else _storable_usd(price),
        "code": None if code is None else code[:64],
    }


def _storable_usd(amount: Decimal) -> Decimal:
    return min(max(amount, Decimal(0)), MAX_USD).quantize(PICODOLLAR)


def _storable(text: str) -> str:
    """The text without characters that PostgreSQL cannot store: NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()[:256]
