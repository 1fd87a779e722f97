"""Lost calls: what was under way when a process was killed is written down as ambiguous, once, by whoever finds it."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence

from engine import flight_log
from engine.flight_log import Note
from engine.jobs import ambiguous
from engine.jobs.claim import Claim
from engine.jobs.under_way import CUT_OFF, UnderWay
from engine.runtime import Runtime
from engine.telemetry import AMBIGUOUS_CALLS
from models.embedding import Call
from models.errors import StorageUnavailable

log = logging.getLogger("embedmill.flights")


async def note_lost_calls(runtime: Runtime) -> int:
    """Write down the calls of dead processes; how many there were. Raises StorageUnavailable."""
    found = 0
    for left in flight_log.abandoned(runtime.flights.folder):
        new: list[Call] = []
        try:
            by_shard: dict[tuple[str, str, str], list[Note]] = defaultdict(list)
            for note in left.notes:
                by_shard[note.project, note.job_id, note.shard_id].append(note)
            for (project, job_id, shard_id), notes in by_shard.items():
                async with runtime.database.write() as connection:
                    new += await ambiguous.note(
                        runtime.database,
                        connection,
                        project=project,
                        job_id=job_id,
                        shard_id=shard_id,
                        calls=[_call(note) for note in notes],
                    )
        except (StorageUnavailable, asyncio.CancelledError):
            left.let_go()  # a call is known by its id: to write it down again changes nothing
            raise
        left.forget()
        _count(new)
        found += len(new)
        if left.notes:
            log.warning("a worker died with calls under way", extra={"count": len(left.notes)})
    return found


async def note_unanswered(runtime: Runtime, held: Claim, under_way: UnderWay) -> None:
    """Write down the calls of a run that were cut off. A database that is away leaves that to whoever reads the log."""
    calls = under_way.unanswered()
    if calls:
        try:
            async with runtime.database.write() as connection:
                new = await ambiguous.note_for(runtime, connection, held, calls)
        except StorageUnavailable:
            return
        # The others came to an error, and were counted with it.
        _count([call for call in new if call.error == CUT_OFF])
    under_way.clear()


def _count(calls: Sequence[Call]) -> None:
    for call in calls:
        AMBIGUOUS_CALLS.labels(call.provider, call.upstream_model).inc()


def _call(note: Note) -> Call:
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
    )
