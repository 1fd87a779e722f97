"""The schema: up, down and up again on both databases, and the same as what the models say."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect

from engine.corpus.lines import ParsedRecords
from engine.jobs.execution.worker import run_shard
from engine.storage.database import Database, migrate, schema_revision
from models.base import Base, new_id
from models.errors import EmbedmillError
from tests.integration.store import Store
from tests.services import PostgresServer, async_url
from tests.system.processes import Processes


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any table."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create(migrated=False)
    yield async_url(url)
    server.drop(url)


async def tables_of(database: Database) -> set[str]:
    async with database.read() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


def run_migration(url: str, revision: str = "head") -> None:
    with ThreadPoolExecutor(1) as thread:  # Alembic runs an event loop of its own
        thread.submit(migrate, url, revision).result()


async def test_up_down_and_up_again(empty_url: str) -> None:
    database = Database(empty_url)
    assert (await schema_revision(database))[0] is None
    run_migration(empty_url)
    full = await tables_of(database)
    assert full == {*Base.metadata.tables, "alembic_version"}
    current, wanted = await schema_revision(database)
    assert current == wanted
    run_migration(empty_url, "base")
    assert await tables_of(database) == {"alembic_version"}
    run_migration(empty_url)
    assert await tables_of(database) == full
    await database.close()


async def test_migrating_twice_changes_nothing(empty_url: str) -> None:
    run_migration(empty_url)
    run_migration(empty_url)
    database = Database(empty_url)
    current, wanted = await schema_revision(database)
    assert current == wanted
    await database.close()


def test_two_processes_that_migrate_at_once_do_not_meet(empty_url: str, tmp_path: Path) -> None:
    places = {"DATABASE_URL": empty_url.replace("+asyncpg", "").replace("+aiosqlite", ""), "DATA_DIR": str(tmp_path)}
    processes = Processes(tmp_path, places)
    with ThreadPoolExecutor(2) as threads:
        for migration in [threads.submit(processes.run, "migrate") for _ in range(2)]:
            migration.result()


async def test_migrated_schema_is_what_the_models_say(empty_url: str) -> None:
    run_migration(empty_url)
    database = Database(empty_url)

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_a_revision_by_name_is_gone_to_whichever_way_it_lies(empty_url: str) -> None:
    """Down to it used to change nothing, and to say that it was done."""
    database = Database(empty_url)
    for revision, full in (("0003", False), ("head", True), ("0004", False), ("0002", False), ("0005", False)):
        run_migration(empty_url, revision)
        current, wanted = await schema_revision(database)
        assert current == (wanted if full else revision)
        run_migration(empty_url, revision)
        assert (await schema_revision(database))[0] == current
    with pytest.raises(CommandError):
        run_migration(empty_url, "nonsense")
    await database.close()


@pytest.mark.parametrize("target", ["base", "0001", "-9"])
@pytest.mark.parametrize("kind", ["duplicates", "ceiling"])
async def test_going_down_is_refused_while_a_job_needs_what_would_be_lost(store: Store, kind: str, target: str) -> None:
    """Down and up again, its duplicates would be open for ever, and its ceiling forgotten."""
    url = store.runtime.settings.sqlalchemy_url
    lines = ParsedRecords()
    for _ in range(3):
        lines.add("the same" if kind == "duplicates" else new_id("text"))
    async with store.receiving() as intake:
        await intake.add(lines)
        await intake.finish(b"fingerprint")
    if kind == "ceiling":
        await store.set_job(intake.job_id, max_cost_usd=Decimal(1))
    with pytest.raises(EmbedmillError, match=r"1 jobs have not ended.*cancel.*Nothing was changed"):
        run_migration(url, target)
    current, wanted = await schema_revision(store.runtime.database)
    assert current == wanted
    assert await store.status(intake.job_id) == "in_progress"
    await run_shard(store.runtime, (await store.shard_ids(intake.job_id))[0], "w")
    assert await store.status(intake.job_id) == "completed"
    run_migration(url, "base")
    run_migration(url)
