"""What callers read of the ledger, on each database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from engine.ledger.usage_reads import DAY_S, find_generation, spending, spent_usd
from engine.storage.database import Database
from models.usage import UsageKind, UsageRecord
from tests.services import async_url

GENERATION = "gen_" + "a" * 32
NOON = 20_000 * DAY_S + DAY_S / 2


def row(row_id: str, *, at: float = NOON, **values: Any) -> dict[str, Any]:
    return {
        "id": row_id,
        "project": "ours",
        "key_id": "k",
        "at": at,
        "lane": "interactive",
        "alias": "tiny",
        "provider": "fake",
        "upstream_model": "up",
        "end_user": None,
        "inputs": 1,
        "calls": 1,
        "prompt_tokens": 10,
        "cost_usd": Decimal("0.000001"),
        "estimated": False,
        "kind": UsageKind.DELIVERED,
    } | values


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Database]:
    database = Database(async_url(database_url).replace("sqlite://", "sqlite+aiosqlite://", 1))
    rows = [
        row(f"{GENERATION}0", inputs=3),
        row(f"{GENERATION}1", provider="second", inputs=1),
        row("use_midnight", at=20_001.0 * DAY_S, alias="other", end_user="ann"),
        row("use_late", at=20_001.0 * DAY_S + 86_399.5, end_user="ann"),
        row("use_lost", at=20_002.0 * DAY_S + 1, kind=UsageKind.AMBIGUOUS, provider="second"),
        row("use_theirs", project="theirs", cost_usd=Decimal(5)),
    ]
    async with database.write() as connection:
        for each in rows:
            await connection.execute(database.insert(UsageRecord).values(each))
    yield database
    await database.close()


async def test_what_a_project_has_spent(ledger: Database) -> None:
    assert await spent_usd(ledger, "ours") == Decimal("0.000005")
    assert await spent_usd(ledger, "theirs") == Decimal(5)
    assert await spent_usd(ledger, "nobody's") == 0


async def test_a_call_by_two_routes_is_one_record(ledger: Database) -> None:
    found = await find_generation(ledger, "ours", GENERATION)
    assert found is not None
    assert (found.alias, found.provider, found.tokens, found.cost_usd) == ("tiny", "fake", 20, Decimal("0.000002"))
    assert found.at == NOON and found.is_delivered
    for project, generation_id in (
        ("theirs", GENERATION),
        ("ours", "gen_" + "b" * 32),
        ("ours", f"{GENERATION}0"),
        ("ours", "gen_%"),
        ("ours", "use_late"),
        ("ours", "\x00"),
        ("ours", ""),
    ):
        assert await find_generation(ledger, project, generation_id) is None


async def test_days_begin_at_midnight(ledger: Database) -> None:
    found = await spending(ledger, "ours", 20_000 * DAY_S, 20_003 * DAY_S, "day", {})
    assert [(each.group, each.requests) for each in found] == [(20_000, 2), (20_001, 2), (20_002, 1)]
    assert sum(each.cost_usd for each in found) == Decimal("0.000005")
    [one] = await spending(ledger, "ours", 20_001 * DAY_S, 20_002 * DAY_S, "day", {})
    assert (one.group, one.tokens) == (20_001, 20)


@pytest.mark.parametrize(
    ("group_by", "names", "groups"),
    [
        ("model", {}, {"tiny": 4, "other": 1}),
        ("provider", {}, {"fake": 3, "second": 2}),
        ("user", {}, {"ann": 2, None: 3}),
        ("user", {"user": "ann"}, {"ann": 2}),
        ("model", {"provider": "second"}, {"tiny": 2}),
        ("day", {"model": "other"}, {20_001: 1}),
    ],
)
async def test_groups(ledger: Database, group_by: str, names: dict[str, str], groups: dict[Any, int]) -> None:
    found = await spending(ledger, "ours", 0, 30_000 * DAY_S, group_by, names)
    assert {each.group: each.requests for each in found} == groups
