"""SQLite's statements in one visit of the connection's thread: rows, counts and errors are those of the adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from engine.storage.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    async with database.write() as connection:
        await connection.execute(text("create table t (id integer primary key, name text)"))
        await connection.execute(
            text("insert into t values (:id, :name)"), [{"id": i, "name": f"n{i}"} for i in range(9)]
        )
    yield database
    await database.close()


async def rows(database: Database, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    async with database.read() as connection:
        return [tuple(row) for row in (await connection.execute(text(sql), values)).all()]


async def test_rows_and_names_are_read(database: Database) -> None:
    async with database.read() as connection:
        result = await connection.execute(text("select id, name from t where id < :most order by id"), {"most": 2})
        assert list(result.keys()) == ["id", "name"]
        assert [row.name for row in result] == ["n0", "n1"]
    assert await rows(database, "select id from t where id > 99") == []


async def test_changes_are_counted(database: Database) -> None:
    async with database.write() as connection:
        assert (await connection.execute(text("update t set name = 'x' where id < 3"))).rowcount == 3
        assert (await connection.execute(text("delete from t where id = 99"))).rowcount == 0


async def test_an_error_is_of_its_class_and_the_connection_goes_on(database: Database) -> None:
    async with database.read() as connection:
        for values in ({"id": 1}, [{"id": 1}, {"id": 2}]):
            with pytest.raises(IntegrityError):
                await connection.execute(text("insert into t values (:id, 'again')"), values)
        assert (await connection.execute(text("select count(*) from t"))).scalar_one() == 9


async def test_returned_rows_of_a_change_are_read(database: Database) -> None:
    async with database.write() as connection:
        changed = await connection.execute(text("update t set name = 'y' where id > 6 returning id"))
        assert sorted(changed.scalars()) == [7, 8]


async def test_a_stream_reads_row_by_row(database: Database) -> None:
    async with database.read() as connection, connection.stream(text("select id from t order by id")) as result:
        assert [row.id async for row in result] == list(range(9))
