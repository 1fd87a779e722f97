"""engine/database on both databases: how it reads, how it writes, and what it says when the server is away."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import delete, func, insert, select, text, update

from engine.storage.database import Database
from models.base import db_now
from models.errors import StorageRefused, StorageUnavailable
from models.worker import WorkerProcess
from tests.integration.store import Store
from tests.services import PostgresServer

CUT_FOR_S = 6.0


@pytest.fixture
def database(store: Store) -> Database:
    return store.runtime.database


def worker(name: str) -> dict[str, object]:
    return {"id": name, "slots": 1, "started_at": 0.0, "seen_at": 0.0}


async def workers(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(WorkerProcess))).scalar_one())


async def test_a_read_opens_no_transaction(database: Database) -> None:
    async with database.read() as connection:
        await connection.execute(text("select 1"))
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        assert not (raw.in_transaction if database.is_sqlite else raw.is_in_transaction())


async def test_a_reader_sees_what_is_committed_meanwhile(database: Database) -> None:
    async with database.read() as connection:
        before = (await connection.execute(select(func.count()).select_from(WorkerProcess))).scalar_one()
        async with database.write() as writer:
            await writer.execute(insert(WorkerProcess).values(worker("w")))
        after = (await connection.execute(select(func.count()).select_from(WorkerProcess))).scalar_one()
    assert (before, after) == (0, 1)


async def test_a_write_is_committed_at_the_end_and_rolled_back_when_it_raises(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(insert(WorkerProcess).values(worker("kept")))
    with pytest.raises(RuntimeError):
        async with database.write() as connection:
            await connection.execute(insert(WorkerProcess).values(worker("dropped")))
            raise RuntimeError
    assert await workers(database) == 1


async def test_a_cancelled_write_leaves_nothing_behind_and_blocks_nobody(database: Database) -> None:
    inserted = asyncio.Event()

    async def write() -> None:
        async with database.write() as connection:
            await connection.execute(insert(WorkerProcess).values(worker("cancelled")))
            inserted.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5), database.write() as connection:
        await connection.execute(insert(WorkerProcess).values(worker("next")))
    assert await workers(database) == 1


async def test_writers_of_two_processes_queue_and_lose_nothing(store: Store) -> None:
    other = store.another()
    async with store.runtime.database.write() as connection:
        await connection.execute(insert(WorkerProcess).values(worker("w")))

    async def add_one(database: Database) -> None:
        async with database.write() as connection:
            slots = (await connection.execute(select(WorkerProcess.slots).with_for_update())).scalar_one()
            await connection.execute(update(WorkerProcess).values(slots=slots + 1))

    await asyncio.gather(*(add_one(each.runtime.database) for each in (store, other) for _ in range(20)))
    async with store.runtime.database.read() as connection:
        assert (await connection.execute(select(WorkerProcess.slots))).scalar_one() == 41
    await other.close()


async def test_a_broken_rule_of_the_schema_is_not_an_outage(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(insert(WorkerProcess).values(worker("w")))
    with pytest.raises(StorageRefused):
        async with database.write() as connection:
            await connection.execute(insert(WorkerProcess).values(worker("w")))


async def test_the_database_clock_is_wall_time_in_seconds(database: Database) -> None:
    async with database.read() as connection:
        first = (await connection.execute(select(db_now()))).scalar_one()
        second = (await connection.execute(select(db_now()))).scalar_one()
    assert first > 1_700_000_000 and 0 <= second - first < 5


async def test_only_one_transaction_does_a_duty(store: Store) -> None:
    other = store.another()
    database = store.runtime.database
    async with database.write() as connection:
        assert await database.try_advisory_lock(connection, 1)
        if not database.is_sqlite:  # there the write itself is exclusive
            async with other.runtime.database.write() as second:
                assert not await database.try_advisory_lock(second, 1)
                assert await database.try_advisory_lock(second, 2)
    async with other.runtime.database.write() as second:
        assert await database.try_advisory_lock(second, 1)
    await other.close()


async def test_a_server_that_is_away_is_storage_unavailable(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"postgresql+asyncpg://u@127.0.0.1:{port}/d", f"sqlite+aiosqlite:///{tmp_path}/missing/file.db"):
        database = Database(url)
        with pytest.raises(StorageUnavailable) as caught:
            await database.ping()
        assert caught.value.retry_after_s
        with pytest.raises(StorageUnavailable):
            async with database.write() as connection:
                await connection.execute(text("select 1"))
        await database.close()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_connections_that_were_cut_are_an_outage_once_and_then_replaced(
    store: Store, database_url: str, postgres: PostgresServer
) -> None:
    database = store.runtime.database
    with pytest.raises(StorageUnavailable):
        async with database.write() as connection:
            await connection.execute(insert(WorkerProcess).values(worker("cut")))
            postgres.end_connections(database_url)
            await connection.execute(insert(WorkerProcess).values(worker("never")))
    # Idle connections of the pool were cut too; each may fail once.
    for _ in range(20):
        try:
            await database.ping()
            async with database.write() as connection:
                await connection.execute(insert(WorkerProcess).values(worker("after")))
            break
        except StorageUnavailable:
            continue
    assert await workers(database) == 1


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_connections_that_are_cut_at_any_moment_are_an_outage_and_nothing_else(
    store: Store, database_url: str, postgres: PostgresServer
) -> None:
    """In a statement, between two, at the commit, and while the pool opens and prepares a connection."""
    database = store.runtime.database
    ends_at = time.monotonic() + CUT_FOR_S
    outages = 0

    async def use(number: int) -> None:
        nonlocal outages
        while time.monotonic() < ends_at:
            try:
                if number % 2:
                    async with database.read() as connection:
                        await connection.execute(select(func.count()).select_from(WorkerProcess))
                    continue
                async with database.write() as connection:
                    await connection.execute(insert(WorkerProcess).values(worker(f"w{number}")))
                    await connection.execute(delete(WorkerProcess).where(WorkerProcess.id == f"w{number}"))
            except StorageUnavailable:  # any other error ends the test
                outages += 1

    def cut() -> None:
        while time.monotonic() < ends_at:
            postgres.end_connections(database_url)

    await asyncio.gather(*(use(number) for number in range(6)), asyncio.to_thread(cut))
    assert outages >= 20


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_frozen_process_loses_its_transaction_and_with_it_its_locks(store: Store) -> None:
    database = store.runtime.database
    with pytest.raises(StorageUnavailable):
        async with database.write() as connection:
            assert (await connection.execute(text("show idle_in_transaction_session_timeout"))).scalar() == "10s"
            await connection.execute(text("set local idle_in_transaction_session_timeout = '50ms'"))
            await connection.execute(insert(WorkerProcess).values(worker("frozen")))
            pid = (await connection.execute(text("select pg_backend_pid()"))).scalar_one()
            await _end_of_session(database, pid)
            await connection.execute(insert(WorkerProcess).values(worker("late")))
    async with asyncio.timeout(5), database.write() as connection:
        await connection.execute(insert(WorkerProcess).values(worker("frozen")))
    assert await workers(database) == 1


async def _end_of_session(database: Database, pid: int) -> None:
    alive = text("select count(*) from pg_stat_activity where pid = :pid")
    async with asyncio.timeout(5), database.read() as connection:
        while (await connection.execute(alive, {"pid": pid})).scalar_one():  # noqa: ASYNC110  # it is the server's
            await asyncio.sleep(0.02)


async def test_a_long_log_is_shortened_unless_somebody_reads_in_it(store: Store) -> None:
    database = store.runtime.database
    log = store.runtime.settings.data_dir / "embedmill.db-wal"
    async with database.write() as connection:
        await connection.execute(insert(WorkerProcess).values(worker("one")))
    await database.checkpoint_wal()
    assert not database.is_sqlite or log.stat().st_size > 0  # it is not long
    other = store.another()
    async with other.runtime.database.write() as reader:
        await reader.execute(select(WorkerProcess.id))
        await database.checkpoint_wal(longer_than=1)  # another time
    await database.checkpoint_wal(longer_than=1)
    assert not database.is_sqlite or log.stat().st_size == 0
    assert await workers(database) == 1
    await other.close()


async def test_processes_that_open_a_new_database_at_once_all_open_it(tmp_path: Path) -> None:
    """Each of them switches it to WAL. Without another try SQLite refuses one of them in every tenth round."""
    for number in range(60):
        path = tmp_path / f"{number}.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE t (x)")
        databases = [Database(f"sqlite+aiosqlite:///{path}", pool_size=1) for _ in range(4)]

        async def count(database: Database) -> int:
            async with database.read() as connection:
                return int((await connection.execute(text("SELECT count(*) FROM t"))).scalar_one())

        assert await asyncio.gather(*map(count, databases)) == [0, 0, 0, 0]
        for database in databases:
            await database.close()
