"""Locks: rows are locked shards first, then jobs, each in the order of their ids. So no two transactions wait for each
other in a circle.

An UPDATE of many rows takes its locks in the order of its plan. So whoever changes more than one row locks them here
first, and then changes those only. SQLite has one writer at a time and needs no locks.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.job import Job, Shard

# Rows locked and changed by one statement; what is left over waits for the next round.
MAX_LOCKED_ROWS = 1000


async def lock_shards(
    connection: AsyncConnection, *where: ColumnElement[bool], limit: int = MAX_LOCKED_ROWS
) -> list[str]:
    """Lock the shards that fulfil all of `where`, the first `at_once` of them by id: their ids."""
    return await _locked(connection, Shard.id, where, limit)


async def lock_jobs(
    connection: AsyncConnection, *where: ColumnElement[bool], limit: int = MAX_LOCKED_ROWS
) -> list[str]:
    """Lock the jobs that fulfil all of `where`, the first `at_once` of them by id: their ids."""
    return await _locked(connection, Job.id, where, limit)


async def _locked(
    connection: AsyncConnection, ids: Any, where: tuple[ColumnElement[bool], ...], limit: int
) -> list[str]:
    # FOR NO KEY UPDATE, as an UPDATE itself takes: rows that refer to these may still be written beside.
    statement = select(ids).where(*where).order_by(ids).limit(limit).with_for_update(key_share=True)
    return list((await connection.execute(statement)).scalars())
