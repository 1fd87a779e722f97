"""The moves of jobs and shards, written down by the database itself: no forbidden one hides between two looks."""

from __future__ import annotations

from typing import Any

from models.job import ShardState
from tests.integration.store import Store

# Whence a shard may go: a late result may end one that waits, and only a retry opens one again.
SHARD_MOVES = {
    ShardState.QUEUED: {ShardState.RUNNING, ShardState.DONE, ShardState.CANCELLED},
    ShardState.RUNNING: {ShardState.QUEUED, ShardState.DONE, ShardState.CANCELLED},
    ShardState.DONE: {ShardState.QUEUED},
    ShardState.CANCELLED: set[ShardState](),
}


async def note_every_move(store: Store) -> None:
    """Have the database itself write down each change of a job's status and a shard's state."""
    tables = (("job", "jobs", "status"), ("shard", "shards", "state"))
    if store.runtime.database.is_sqlite:
        statements = ["create table moves (seq integer primary key, thing text, before text, after text)"]
        statements += [
            f"create trigger note_{thing} after update of {column} on {table} when old.{column} <> new.{column} begin "
            f"insert into moves (thing, before, after) values ('{thing}', old.{column}, new.{column}); end"
            for thing, table, column in tables
        ]
    else:
        statements = ["create table moves (seq bigserial primary key, thing text, before text, after text)"]
        for thing, table, column in tables:
            statements += [
                f"create function note_{thing}() returns trigger language plpgsql as $$ begin insert into moves "
                f"(thing, before, after) values ('{thing}', old.{column}, new.{column}); return null; end $$",
                f"create trigger note_{thing} after update of {column} on {table} for each row "
                f"when (old.{column} is distinct from new.{column}) execute function note_{thing}()",
            ]
    async with store.runtime.database.write() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def moves_after(store: Store, seq: int) -> list[Any]:
    async with store.runtime.database.read() as connection:
        rows = await connection.exec_driver_sql(
            f"select seq, thing, before, after from moves where seq > {seq} order by 1"
        )
        return [tuple(row) for row in rows.all()]
