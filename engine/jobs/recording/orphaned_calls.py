"""Orphaned calls: in-flight calls of a killed process, recorded once as ambiguous by the process that finds them."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.durability import call_journal
from engine.durability.call_journal import CallJournal, InFlightCall
from engine.job_store import JobStore
from engine.jobs.recording import calls_without_results
from models.embedding import Call
from models.job import Shard
from models.usage import UsageRecord

log = logging.getLogger("embedmill.calls")


async def record_orphaned_calls(store: JobStore, journal: CallJournal) -> int:
    """Record the calls in the journals of dead processes. Returns how many were new. Raises StorageUnavailable."""
    found = 0
    for orphaned in call_journal.orphaned(journal.folder):
        with contextlib.ExitStack() as undo:
            undo.callback(orphaned.unlock)  # calls are identified by their ids, so repeating the insert changes nothing
            new = await _record(store, orphaned.notes)
            undo.pop_all()
        orphaned.delete()
        calls_without_results.count_unanswered(new)
        found += len(new)
        if orphaned.notes:
            log.warning("a worker died with calls under way", extra={"count": len(orphaned.notes)})
    return found


async def _record(store: JobStore, notes: Sequence[InFlightCall]) -> list[Call]:
    """Record the calls of one journal, a transaction for each shard. Returns the calls that were new."""
    new: list[Call] = []
    by_shard: dict[tuple[str, str, str], list[InFlightCall]] = defaultdict(list)
    for entry in notes:
        by_shard[entry.project, entry.job_id, entry.shard_id].append(entry)
    for (project, job_id, shard_id), entries in by_shard.items():
        async with store.database.write() as connection:
            known = await _recorded(connection, job_id, shard_id, entries)
            new += await calls_without_results.insert_calls(
                store.database,
                connection,
                project=project,
                job_id=job_id,
                shard_id=shard_id,
                calls=[
                    calls_without_results.unanswered(entry, "worker_lost", ended_at=entry.started_at)
                    for entry in entries
                    if entry.record_id not in known
                ],
            )
    return new


async def _recorded(connection: AsyncConnection, job_id: str, shard_id: str, notes: Sequence[InFlightCall]) -> set[str]:
    """The record ids that are in the database: the process was killed before it could clear its journal."""
    record_ids = {entry.record_id for entry in notes if entry.record_id}
    if not record_ids:
        return set()
    # A transaction of the dead process may still hold the lock on the shard until it commits or is rolled back.
    await connection.execute(select(Shard.id).where(Shard.id == shard_id).with_for_update())
    known: set[str] = set()
    for record_id in record_ids:
        # All rows of the record: delivered, late, and of the halves of a split shard.
        rows = select(UsageRecord.id).where(
            UsageRecord.job_id == job_id, UsageRecord.id.startswith(record_id, autoescape=True)
        )
        if (await connection.execute(rows.limit(1))).first() is not None:
            known.add(record_id)
    return known
