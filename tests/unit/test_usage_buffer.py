"""The ledger's buffer: no row is lost or written twice, whenever the process stops and whatever the database does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.database import Database
from engine.usage import UsageBuffer, rows
from models.embedding import InputError, Landed, Route
from models.errors import StorageUnavailable
from models.usage import UsageRecord
from tests.fakes import route


class Moody(Database):
    """A real database that is down, or dawdles after a commit, when told to."""

    is_down = False
    dawdles = False
    committed = 0

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.first_commit = asyncio.Event()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        if self.is_down:
            raise StorageUnavailable("the database does not answer")
        async with super().write() as connection:
            yield connection
        self.committed += 1
        self.first_commit.set()
        if self.dawdles:
            await asyncio.sleep(0.1)


@pytest.fixture
async def database(data_dir: Path) -> AsyncIterator[Moody]:
    database = Moody(f"sqlite+aiosqlite:///{data_dir / 'embedmill.db'}")
    yield database
    await database.close()


def landed(count: int = 2, of: Route | None = None, tokens: int = 10) -> Landed:
    return Landed(range(count), None, None, tokens, False, Decimal("0.000001"), of or route())


def some(count: int) -> list[dict[str, Any]]:
    return [
        row for _ in range(count) for row in rows([landed()], project="p", key_id="k", lane="interactive", alias="m")
    ]


async def ledger(database: Database) -> list[str]:
    async with database.read() as connection:
        return sorted((await connection.execute(select(UsageRecord.id))).scalars())


async def test_everything_added_is_written_by_the_end(database: Moody) -> None:
    buffer, given = UsageBuffer(database), some(450)
    buffer.add(given[:1])
    buffer.add(given[1:])
    await buffer.close()
    assert await ledger(database) == sorted(row["id"] for row in given)
    assert database.committed == 3  # 200 rows a transaction


async def test_rows_are_written_without_being_asked_for(database: Moody) -> None:
    buffer, given = UsageBuffer(database), some(1)
    buffer.add(given)
    await asyncio.wait_for(database.first_commit.wait(), 10)
    assert await ledger(database) == [given[0]["id"]]
    await buffer.close()


async def test_closing_in_the_middle_of_a_write_writes_nothing_twice(database: Moody) -> None:
    database.dawdles = True
    buffer, given = UsageBuffer(database), some(3)
    buffer.add(given)
    await asyncio.wait_for(database.first_commit.wait(), 10)
    await buffer.close()
    assert await ledger(database) == sorted(row["id"] for row in given)


async def test_a_database_that_is_away_for_a_while_loses_nothing(database: Moody) -> None:
    buffer, given = UsageBuffer(database), some(5)
    database.is_down = True
    buffer.add(given)
    with pytest.raises(StorageUnavailable):
        await buffer.flush()
    database.is_down = False
    await buffer.close()
    assert await ledger(database) == sorted(row["id"] for row in given)


async def test_closing_while_the_database_is_away_does_not_raise(database: Moody) -> None:
    buffer = UsageBuffer(database)
    database.is_down = True
    buffer.add(some(1))
    await buffer.close()
    assert await ledger(database) == []


def test_a_row_for_each_route_and_none_for_refusals() -> None:
    first, second = route("first"), route("second")
    refused = Landed([9], None, InputError("c", "m"), 0, False, Decimal(0), None)
    made = rows(
        [landed(2, first), landed(3, second, 7), landed(4, first), refused],
        project="p",
        key_id="k",
        lane="bulk",
        alias="m",
        user="u",
        job_id="job_1",
    )
    by_provider = {row["provider"]: row for row in made}
    assert set(by_provider) == {"first", "second"} and len({row["id"] for row in made}) == 2
    one = by_provider["first"]
    assert (one["inputs"], one["calls"], one["prompt_tokens"], one["cost_usd"]) == (6, 2, 20, Decimal("0.000002"))
    assert (one["end_user"], one["job_id"], one["upstream_model"], one["estimated"]) == ("u", "job_1", "m", False)


async def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(database: Moody) -> None:
    buffer = UsageBuffer(database)
    given = some(3)
    bad = {**some(1)[0], "inputs": None}
    buffer.add([given[0], bad, *given[1:]])
    await buffer.flush()
    await buffer.close()
    assert await ledger(database) == sorted(row["id"] for row in given)
