"""By which routes the inputs of a job were embedded, and what each has billed for nothing: read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import func, select

from engine.storage.database import Database
from models.usage import UsageKind, UsageRecord


@dataclass(slots=True)
class Share:
    """What one kind of calls comes to."""

    calls: int = 0
    inputs: int = 0
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)


@dataclass(slots=True)
class RouteShare:
    """One account and upstream model: calls by kind, and why those without a result had none."""

    provider: str
    upstream_model: str
    by_kind: dict[str, Share] = field(default_factory=lambda: {kind.value: Share() for kind in UsageKind})
    codes: dict[str, int] = field(default_factory=dict)  # calls without a result, by the error's code


async def load_route_shares(database: Database, job_id: str) -> Sequence[RouteShare]:
    """The routes that have billed calls of the job, the one with the most delivered inputs first."""
    row = UsageRecord
    statement = (
        select(
            row.provider,
            row.upstream_model,
            row.kind,
            row.code,
            func.sum(row.calls),
            func.sum(row.inputs),
            func.sum(row.prompt_tokens),
            func.sum(row.cost_usd),
        )
        .where(row.job_id == job_id)
        .group_by(row.provider, row.upstream_model, row.kind, row.code)
    )
    async with database.read() as connection:
        rows = (await connection.execute(statement)).all()
    routes: dict[tuple[str, str], RouteShare] = {}
    for provider, upstream_model, kind, code, calls, inputs, tokens, cost_usd in rows:
        route = routes.setdefault((provider, upstream_model), RouteShare(provider, upstream_model))
        share = route.by_kind[kind]
        share.calls += int(calls)
        share.inputs += int(inputs)
        share.tokens += int(tokens)
        share.cost_usd += cost_usd
        if kind != UsageKind.DELIVERED:
            name = code or "unknown"
            route.codes[name] = route.codes.get(name, 0) + int(calls)
    return sorted(routes.values(), key=lambda each: -each.by_kind[UsageKind.DELIVERED].inputs)
