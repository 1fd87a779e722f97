"""The schema: up, down and up again on both databases, and the same as what the models say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.corpus.lines import ParsedRecords
from engine.storage.database import Database, migrate, schema_revision
from models.base import Base, new_id
from models.errors import EmbedmillError
from tests.integration.store import Store
from tests.running import run_shard
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


@pytest.mark.parametrize("target", ["base", "0001", "-15"])
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


async def test_revision_0011_keeps_what_it_renames_on_the_way_up_and_down(empty_url: str) -> None:
    run_migration(empty_url, "0010")
    database = Database(empty_url)
    before = await _fill_0010(database)
    await database.close()  # its statements are prepared for the old columns
    run_migration(empty_url, "0011")
    database = Database(empty_url)
    async with database.read() as connection:
        job = (await connection.execute(text("select * from jobs"))).one()
        shard = (await connection.execute(text("select * from shards"))).one()
        duplicates = (await connection.execute(text("select duplicates from shard_inputs"))).scalar_one()
        share = (await connection.execute(text("select * from fair_shares"))).one()
        checks = (await connection.execute(text("select account, similarity from drift_checks"))).all()
    assert (job.virtual_time, job.shard_claims, job.worker_crashes, job.upload_owner) == (1, 2, 3, "owner")
    assert (job.not_before, job.rate_sample_done, job.prev_rate_sample_tokens) == (5.0, 6, 7)
    assert (shard.state, shard.announced_at, bytes(shard.outcome_bitmap)) == ("announced", 8.0, b"\xf0")
    assert (shard.worker_crashes, shard.crash_limit, shard.reserved_usd) == (4, 9, 11)
    baseline = shard.solo_baseline if isinstance(shard.solo_baseline, dict) else json.loads(shard.solo_baseline)
    assert baseline == {"shard_crashes": 1, "claims": 2, "crashes": 3, "at": 4.5}
    assert (bytes(duplicates), share.virtual_time, share.min_virtual_time, share.start_virtual_time) == (b"d", 1, 2, 3)
    assert [tuple(row) for row in checks] == [("account", 0.5)]
    await database.close()
    run_migration(empty_url, "0010")
    database = Database(empty_url)
    assert await _rows_of(database) == before
    await database.close()


async def test_revision_0012_queues_what_was_announced(empty_url: str) -> None:
    run_migration(empty_url, "0010")
    database = Database(empty_url)
    await _fill_0010(database)
    await database.close()
    for target, state, columns in (
        ("0011", "announced", {"announced_at"}),
        ("0012", "queued", set[str]()),
        ("0011", "queued", {"announced_at"}),
        ("head", "queued", set[str]()),
    ):
        run_migration(empty_url, target)
        database = Database(empty_url)
        async with database.read() as connection:
            shard = (await connection.execute(text("select * from shards"))).one()
        assert (shard.state, bytes(shard.outcome_bitmap)) == (state, b"\xf0")
        assert {"announced_at"} & shard._mapping.keys() == columns
        await database.close()


async def test_revision_0013_orders_shards_by_their_first_index_and_numbers_them_again_on_the_way_down(
    empty_url: str,
) -> None:
    run_migration(empty_url, "0010")
    database = Database(empty_url)
    await _fill_0010(database)
    # As revision 0012 numbered them: the second half of a split shard far above all others.
    async with database.write() as connection:
        columns = [name for name in (await _shards_of(connection))[0] if name not in ("id", "seq", "first_index")]
        for shard_id, seq, first_index in (("later", 1, 8), ("half", 1_000_000_000, 4)):
            await connection.execute(
                text(
                    f"insert into shards (id, seq, first_index, {', '.join(columns)}) "
                    f"select '{shard_id}', {seq}, {first_index}, {', '.join(columns)} from shards where id = 's'"
                )
            )
    await database.close()
    kept: list[dict[str, Any]] = []
    for target in ("0012", "0013", "0012", "0015"):
        run_migration(empty_url, target)
        database = Database(empty_url)
        async with database.read() as connection:
            shards = await _shards_of(connection)
        numbers = [shard.pop("seq", None) for shard in shards]
        assert [shard["id"] for shard in shards] == ["s", "half", "later"]
        assert numbers == (([0, 1, 2] if kept else [0, 1_000_000_000, 1]) if target == "0012" else [None] * 3)
        assert shards == (kept or shards)
        kept = shards
        await database.close()


async def test_revision_0014_keeps_the_ledger_and_outages_on_the_way_up_and_down(empty_url: str) -> None:
    run_migration(empty_url, "0013")
    row = {
        "id": "use_1", "project": "p", "key_id": "k", "at": 1.5, "lane": "bulk", "job_id": "j", "alias": "m",
        "provider": "one", "upstream_model": "m", "end_user": None, "inputs": 2, "calls": 1, "prompt_tokens": 7,
        "cost_usd": 2**63 - 1, "estimated": True, "kind": "wasted", "code": "late_result",
    }  # fmt: skip
    insert = f"insert into usage ({', '.join(row)}) values ({', '.join(f':{key}' for key in row)})"
    outage = {
        "account": "one", "upstream_model": "m", "code": "c", "message": "m", "advice": "a", "status": 401,
        "since": 1.5, "failures": 2, "next_attempt_at": 2.5,
    }  # fmt: skip
    columns, places = ", ".join(outage), ", ".join(f":{key}" for key in outage)
    database = Database(empty_url)
    async with database.write() as connection:
        await connection.execute(text(insert), row)
        await connection.execute(text(f"insert into route_outages ({columns}) values ({places})"), outage)
    await database.close()
    unknown: dict[str, Any] = {"usd_per_million_tokens": None}
    for target, added in (("0014", unknown), ("0013", {}), ("0014", unknown)):
        run_migration(empty_url, target)
        database = Database(empty_url)
        async with database.write() as connection:
            # A process of the release before still writes such rows.
            await connection.execute(text(insert), row | {"id": f"use_of_{target}"})
            found = (await connection.execute(text("select * from usage where id = 'use_1'"))).one()
            outage_found = (await connection.execute(text("select * from route_outages"))).one()
            await connection.execute(text(f"delete from usage where id = 'use_of_{target}'"))
        assert dict(found._mapping) == row | added
        assert dict(outage_found._mapping) == outage | ({"probe_until": None} if added else {})
        await database.close()


@pytest.mark.parametrize(("options", "input_type"), [({"input_type": "query"}, "query"), ({"user": "u"}, None)])
async def test_revision_0015_takes_the_meaning_of_inputs_out_of_the_options(
    empty_url: str, options: dict[str, Any], input_type: str | None
) -> None:
    run_migration(empty_url, "0010")
    database = Database(empty_url)
    await _fill_0010(database)
    async with database.write() as connection:
        await connection.execute(text("update jobs set options = :options"), {"options": json.dumps(options)})
    await database.close()
    for target in ("head", "0014", "head"):
        run_migration(empty_url, target)
        database = Database(empty_url)
        async with database.read() as connection:
            job = (await connection.execute(text("select * from jobs"))).one()._mapping
        assert job.get("input_type", "gone") == ("gone" if target == "0014" else input_type)
        await database.close()


async def _shards_of(connection: AsyncConnection) -> list[dict[str, Any]]:
    rows = await connection.execute(text("select * from shards order by first_index"))
    return [dict(row._mapping) for row in rows]


async def _rows_of(database: Database) -> list[dict[str, Any]]:
    tables = ("jobs", "shards", "shard_inputs", "fair_shares", "canaries")
    async with database.read() as connection:
        found = [(await connection.execute(text(f"select * from {name}"))).one() for name in tables]
    rows = [
        {key: bytes(each) if isinstance(each, memoryview) else each for key, each in row._mapping.items()}
        for row in found
    ]
    rows[1]["solo_trial"] = _parsed(rows[1]["solo_trial"])
    return rows


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


async def _fill_0010(database: Database) -> list[dict[str, Any]]:
    """One row in each table that revision 0011 changes; all of them."""
    job = {
        "id": "j", "project": "p", "key_id": "k", "status": "in_progress", "alias": "m", "space": "s", "dimensions": 4,
        "options": "{}", "metadata": "{}", "request_id": "r", "ingested": 0, "completed": 0, "failed": 0,
        "open_shards": 1, "prompt_tokens": 0, "cost_usd": 0, "usage_estimated": False, "error_summary": "[]",
        "created_at": 1.0, "expires_at": 2.0, "version": 1, "served_tokens": 1, "runs": 2, "worker_losses": 3,
        "intake_until": 4.0, "intake_owner": "owner", "intake_hash": b"h", "intake_refused": 4, "blocked_until": 5.0,
        "mark_at": 1.0, "mark_done": 6, "mark_tokens": 1, "earlier_mark_at": 1.0, "earlier_mark_done": 1,
        "earlier_mark_tokens": 7,
    }  # fmt: skip
    shard = {
        "id": "s", "job_id": "j", "seq": 0, "first_index": 0, "count": 4, "state": "rung", "attempt": 0, "fence": 0,
        "next_run_at": 1.0, "rung_at": 8.0, "settled": b"\xf0", "lost": 4, "lost_limit": 9, "allowance_usd": 11,
        "solo_trial": json.dumps({"lost": 1, "runs": 2, "losses": 3, "at": 4.5}),
    }  # fmt: skip
    check = {"account": "account", "upstream_model": "m", "space": "s", "text_digest": "d", "checked_at": 1.0}
    rows: dict[str, dict[str, Any]] = {
        "jobs": job,
        "shards": shard,
        "shard_inputs": {"shard_id": "s", "inputs": b"i", "twins": b"d"},
        "fair_shares": {"project": "p", "served_tokens": 1, "rear_tokens": 2, "joining_tokens": 3},
        "canaries": check | {"similarity": 0.5},
    }
    async with database.write() as connection:
        for name, row in rows.items():
            columns, places = ", ".join(row), ", ".join(f":{key}" for key in row)
            await connection.execute(text(f"insert into {name} ({columns}) values ({places})"), row)
    return await _rows_of(database)
