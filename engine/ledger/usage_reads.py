"""Reads of the ledger for callers: what a project has spent, and the record of one sync call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Integer, cast, func, select

from engine.storage.database import Database
from models.usage import UsageKind, UsageRecord

GENERATION = re.compile(r"gen_[0-9a-f]{32}\Z")
# A call's rows are numbered, one for each of its routes and prices: more than this no alias has.
MAX_ROWS = 32
DAY_S = 86_400
GROUPS = ("day", "model", "provider", "user")


@dataclass(frozen=True, slots=True)
class Generation:
    """One sync call, summed over its routes."""

    id: str
    alias: str
    provider: str  # that embedded most of the inputs
    at: float  # unix seconds
    tokens: int
    cost_usd: Decimal
    is_delivered: bool


@dataclass(frozen=True, slots=True)
class Spending:
    """What the calls of one group have cost. `group`: a day as whole days since 1970, or a name."""

    group: int | str | None
    cost_usd: Decimal
    tokens: int
    requests: int  # to providers


async def spent_usd(database: Database, project: str) -> Decimal:
    """The cost of all calls of a project, those without a result included."""
    statement = select(func.sum(UsageRecord.cost_usd)).where(UsageRecord.project == project)
    async with database.read() as connection:
        spent: Decimal | None = (await connection.execute(statement)).scalar_one()
    return spent or Decimal(0)


async def find_generation(database: Database, project: str, generation_id: str) -> Generation | None:
    """The record of a sync call of this project; None where there is none, or not yet."""
    if not GENERATION.match(generation_id):
        return None
    ids = [f"{generation_id}{number}" for number in range(MAX_ROWS)]
    row = UsageRecord
    statement = (
        select(row.alias, row.provider, row.at, row.prompt_tokens, row.cost_usd, row.kind)
        .where(row.id.in_(ids), row.project == project)
        .order_by(row.inputs.desc())
    )
    async with database.read() as connection:
        rows = (await connection.execute(statement)).all()
    if not rows:
        return None
    alias, provider, at, _, _, kind = rows[0]
    tokens = sum(each[3] for each in rows)
    cost_usd = sum((each[4] for each in rows), Decimal(0))
    return Generation(generation_id, alias, provider, at, tokens, cost_usd, kind == UsageKind.DELIVERED)


async def spending(
    database: Database, project: str, start: float, stop: float, group_by: str, names: Mapping[str, str]
) -> list[Spending]:
    """The cost of a project's calls from `start` until before `stop` (unix seconds), by one of GROUPS, in its order.

    `names`: only calls of this model, provider or user.
    """
    row = UsageRecord
    # PostgreSQL rounds a number that it casts, and SQLite may have no floor.
    days = cast(row.at / DAY_S, Integer) if database.is_sqlite else func.floor(row.at / DAY_S)
    columns: dict[str, ColumnElement[Any]] = {
        "day": days,
        "model": row.alias.expression,
        "provider": row.provider.expression,
        "user": row.user.expression,
    }
    group = columns[group_by].label("of")
    statement = (
        select(group, func.sum(row.cost_usd), func.sum(row.prompt_tokens), func.sum(row.calls))
        .where(row.project == project, row.at >= start, row.at < stop)
        .where(*(columns[column] == name for column, name in names.items()))
        .group_by(group)
        .order_by(group)
    )
    async with database.read() as connection:
        rows = (await connection.execute(statement)).all()
    return [
        Spending(int(of) if group_by == "day" else of, cost_usd, int(tokens), int(calls))
        for of, cost_usd, tokens, calls in rows
    ]
