"""Row locks in one order: shards before jobs, each by id. This order rules out deadlocks.

An UPDATE of several rows takes its locks in the order of its plan, so a caller that changes more than one row locks
the rows here first and then changes only those. SQLite has one writer at a time and needs no row locks.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.job import Job, Shard

# Rows that one statement locks and changes; the next round takes the others.
MAX_LOCKED_ROWS = 1000


async def lock_shards(
    connection: AsyncConnection, *where: ColumnElement[bool], limit: int = MAX_LOCKED_ROWS
) -> list[str]:
    """Lock up to `limit` shards that satisfy all of `where`, in the order of their ids. Returns the ids."""
    return await _locked(connection, Shard.id, where, limit)


async def lock_jobs(
    connection: AsyncConnection, *where: ColumnElement[bool], limit: int = MAX_LOCKED_ROWS
) -> list[str]:
    """Lock up to `limit` jobs that satisfy all of `where`, in the order of their ids. Returns the ids."""
    return await _locked(connection, Job.id, where, limit)


async def _locked(
    connection: AsyncConnection, ids: Any, where: tuple[ColumnElement[bool], ...], limit: int
) -> list[str]:
    # FOR NO KEY UPDATE, as an UPDATE takes: rows with foreign keys to these may be inserted meanwhile.
    statement = select(ids).where(*where).order_by(ids).limit(limit).with_for_update(key_share=True)
    return list((await connection.execute(statement)).scalars())
