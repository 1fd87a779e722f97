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

from engine.durability.spool import Spool
from engine.ledger.usage_buffer import UsageBuffer, replay
from engine.ledger.usage_rows import delivered
from engine.observability.telemetry import USAGE_DROPPED, USAGE_WAITING
from engine.storage.database import Database
from models.embedding import BatchOutcome, InputError, Route
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


def landed(count: int = 2, of: Route | None = None, tokens: int = 10) -> BatchOutcome:
    return BatchOutcome(range(count), None, None, tokens, False, Decimal("0.000001"), of or route())


def some(count: int) -> list[dict[str, Any]]:
    return [
        row
        for _ in range(count)
        for row in delivered([landed()], project="p", key_id="k", lane="interactive", alias="m")
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
    refused = BatchOutcome([9], None, InputError("c", "m"), 0, False, Decimal(0), None)
    made = delivered(
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


@pytest.mark.parametrize(
    ("parts", "row"), [((False, True), True), ((True, False), True), ((False, False), False), ((True, True), True)]
)
def test_a_row_with_any_estimate_in_it_is_estimated(parts: tuple[bool, bool], row: bool) -> None:
    served = [landed()._replace(tokens_estimated=is_estimated) for is_estimated in parts]
    [made] = delivered(served, project="p", key_id="k", lane="interactive", alias="m")
    assert made["estimated"] is row


async def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(database: Moody) -> None:
    buffer = UsageBuffer(database)
    given = some(3)
    bad = {**some(1)[0], "inputs": None}
    buffer.add([given[0], bad, *given[1:]])
    await buffer.flush()
    await buffer.close()
    assert await ledger(database) == sorted(row["id"] for row in given)


async def test_rows_beyond_the_cap_are_counted_and_the_gauge_tells_of_all_that_wait(database: Moody) -> None:
    """Without a disk. The cap is 100,000 rows."""
    database.is_down = True
    buffer = UsageBuffer(database)
    row, dropped = some(1)[0], USAGE_DROPPED._value.get()
    buffer.add([row] * 99_999)
    assert USAGE_WAITING._value.get() == 99_999
    buffer.add([row] * 4)
    assert USAGE_WAITING._value.get() == 100_000 and USAGE_DROPPED._value.get() - dropped == 3
    await buffer.close()
    assert USAGE_DROPPED._value.get() - dropped == 100_003


async def test_rows_outlast_the_process_on_the_disk_and_are_written_once(database: Moody, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "usage", max_bytes=1 << 24)
    database.is_down = True
    buffer, given = UsageBuffer(database, spool), some(450)
    buffer.add(given)
    await buffer.close()  # as at the end of a process
    assert await ledger(database) == [] and len(list((tmp_path / "usage").glob("*.spool"))) == 1
    database.is_down = False
    others = [UsageBuffer(database, Spool(tmp_path / "usage", max_bytes=1 << 24)) for _ in range(2)]
    await asyncio.gather(*(each.replay() for each in others))
    assert await ledger(database) == sorted(row["id"] for row in given)
    assert list((tmp_path / "usage").iterdir()) == []


async def test_a_row_that_is_refused_lies_in_a_file_for_a_person(database: Moody, tmp_path: Path) -> None:
    buffer, given = UsageBuffer(database, Spool(tmp_path / "usage", max_bytes=1 << 24)), some(2)
    buffer.add([given[0], {**some(1)[0], "inputs": None}, given[1]])
    await buffer.close()
    assert await ledger(database) == sorted(row["id"] for row in given)
    [kept] = (tmp_path / "usage").iterdir()
    assert kept.suffix == ".bad"


async def test_any_error_of_the_database_leaves_the_writer_alive(database: Moody) -> None:
    class Broken(Moody):
        @asynccontextmanager
        async def write(self) -> AsyncIterator[AsyncConnection]:
            if self.is_down:
                raise RuntimeError("of a driver")
            async with super().write() as connection:
                yield connection

    broken = Broken(database.url)
    broken.is_down = True
    buffer, given = UsageBuffer(broken), some(1)
    buffer.add([])
    buffer.start()
    broken.is_down = False
    buffer.add(given)
    await asyncio.wait_for(broken.first_commit.wait(), 10)
    assert await ledger(database) == [given[0]["id"]]
    await buffer.close()
    await broken.close()


async def test_rows_of_a_dead_process_wait_while_the_database_is_away(database: Moody, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "usage", max_bytes=1 << 20)
    buffer, given = UsageBuffer(database, spool), some(2)
    database.is_down = True
    buffer.add(given)
    await buffer.close()
    with pytest.raises(StorageUnavailable):
        await replay(database, spool)
    database.is_down = False
    assert await replay(database, spool) == 1  # the file was not left locked
    assert await ledger(database) == sorted(row["id"] for row in given)


async def test_a_file_of_rows_that_are_refused_is_set_aside_and_logged_once(
    database: Moody, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "usage", max_bytes=1 << 20)
    database.is_down = True
    buffer = UsageBuffer(database, spool)
    buffer.add([{**some(1)[0], "inputs": None}])
    await buffer.close()
    database.is_down = False
    assert await replay(database, spool) == 1 and await replay(database, spool) == 0
    assert [path.suffix for path in (tmp_path / "usage").iterdir() if path.name.startswith("usage-")] == [".bad"]
    logged = [record for record in caplog.records if "was refused" in record.getMessage()]
    assert len(logged) == 1 and logged[0].exc_info
