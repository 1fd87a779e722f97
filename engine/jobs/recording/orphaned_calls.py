"""Lost calls: what was under way when a process was killed is written down as ambiguous, once, by whoever finds it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.durability import call_journal
from engine.durability.call_journal import InFlightCall
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import ambiguous
from engine.jobs.recording.in_flight_calls import RunCalls
from engine.observability.route_metrics import CUT_OFF
from engine.observability.telemetry import AMBIGUOUS_CALLS
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from models.embedding import Call
from models.job import Shard
from models.usage import UsageRecord

log = logging.getLogger("embedmill.flights")


async def note_lost_calls(runtime: Runtime) -> int:
    """Write down the calls of dead processes; how many there were. Raises StorageUnavailable."""
    found = 0
    for left in call_journal.orphaned(runtime.journal.folder):
        new: list[Call] = []
        try:
            by_shard: dict[tuple[str, str, str], list[InFlightCall]] = defaultdict(list)
            for note in left.notes:
                by_shard[note.project, note.job_id, note.shard_id].append(note)
            for (project, job_id, shard_id), notes in by_shard.items():
                async with runtime.database.write() as connection:
                    known = await _recorded(connection, job_id, shard_id, notes)
                    new += await ambiguous.note(
                        runtime.database,
                        connection,
                        project=project,
                        job_id=job_id,
                        shard_id=shard_id,
                        calls=[_call(note) for note in notes if note.record_id not in known],
                    )
        except BaseException:
            left.unlock()  # a call is known by its id: to write it down again changes nothing
            raise
        left.delete()
        _count(new)
        found += len(new)
        if left.notes:
            log.warning("a worker died with calls under way", extra={"count": len(left.notes)})
    return found


async def _recorded(connection: AsyncConnection, job_id: str, shard_id: str, notes: Sequence[InFlightCall]) -> set[str]:
    """The ids of those records that the database has: their process was killed before it could clear its notes."""
    record_ids = {note.record_id for note in notes if note.record_id}
    if not record_ids:
        return set()
    # A record that a dying process has sent holds the shard until it is in the database, or is not.
    await connection.execute(select(Shard.id).where(Shard.id == shard_id).with_for_update())
    known: set[str] = set()
    for record_id in record_ids:
        # Its rows, whatever they are of: delivered, late, of a half of the shard.
        rows = select(UsageRecord.id).where(
            UsageRecord.job_id == job_id, UsageRecord.id.startswith(record_id, autoescape=True)
        )
        if (await connection.execute(rows.limit(1))).first() is not None:
            known.add(record_id)
    return known


async def note_unanswered(runtime: Runtime, held: ClaimedShard, under_way: RunCalls) -> None:
    """Write down what no record has: calls of a run that were billed in vain, or cut off.

    A database that is away leaves that to whoever reads the log.
    """
    calls = {call.id: call for call in (*under_way.unanswered(), *ambiguous.unsettled(held))}
    if calls:
        try:
            async with runtime.database.write() as connection:
                new = await ambiguous.note_for(runtime, connection, held, list(calls.values()))
        except DATABASE_ERRORS:
            return
        # The others came to an error, and were counted with it.
        _count([call for call in new if call.error == CUT_OFF])
        ambiguous.forget(held, list(calls.values()))
    under_way.clear()


def _count(calls: Sequence[Call]) -> None:
    for call in calls:
        AMBIGUOUS_CALLS.labels(call.provider, call.upstream_model).inc()


def _call(note: InFlightCall) -> Call:
    return Call(
        note.provider,
        note.upstream_model,
        False,
        None,
        note.started_at,
        note.started_at,
        error="worker_lost",
        ambiguous=True,
        inputs=note.inputs,
        id=note.call_id,
        tokens=note.tokens,
        tokens_estimated=True,
        cost_usd=note.cost_usd,
    )
