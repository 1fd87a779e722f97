"""Ambiguous calls: sent, and never answered. The provider may have billed them, so each is written down, once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.database import Database
from engine.jobs.claim import Claim
from engine.runtime import Runtime
from models.embedding import Call
from models.job import AmbiguousCall, Job


def unanswered(held: Claim) -> list[Call]:
    """Those calls of a run that are to be written down."""
    return [call for call in held.calls if call.ambiguous]


async def note(
    database: Database, connection: AsyncConnection, *, project: str, job_id: str, shard_id: str, calls: Sequence[Call]
) -> list[Call]:
    """Write down calls of a job that were never answered; those that were new. The order of locks: shard, then job.

    A call is known by its id: one that was written down before, by whomever, is not again.
    """
    if not calls:
        return []
    rows = [
        {
            "id": call.id,
            "project": project,
            "job_id": job_id,
            "shard_id": shard_id,
            "provider": call.provider,
            "upstream_model": call.upstream_model,
            "inputs": call.inputs,
            "at": call.started_at,
            "reason": (call.error or "unknown")[:64],
        }
        for call in calls
    ]
    statement = database.insert(AmbiguousCall).values(rows).on_conflict_do_nothing().returning(AmbiguousCall.id)
    ids = set((await connection.execute(statement)).scalars())
    new = [call for call in calls if call.id in ids]
    if new:
        await connection.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(
                ambiguous_calls=Job.ambiguous_calls + len(new),
                ambiguous_inputs=Job.ambiguous_inputs + sum(call.inputs for call in new),
                version=Job.version + 1,
            )
        )
    return new


async def note_of(runtime: Runtime, connection: AsyncConnection, held: Claim) -> list[Call]:
    """Write down those of a run, in the caller's transaction; once that is committed, `forget` them."""
    calls = unanswered(held)
    await note_for(runtime, connection, held, calls)
    return calls


async def note_for(runtime: Runtime, connection: AsyncConnection, held: Claim, calls: Sequence[Call]) -> list[Call]:
    """Write down these calls of a run; those that were not known yet."""
    return await note(
        runtime.database,
        connection,
        project=held.project,
        job_id=held.job_id,
        shard_id=held.shard_id,
        calls=calls,
    )


def forget(held: Claim, calls: Sequence[Call]) -> None:
    """These are in the database."""
    known = {call.id for call in calls}
    held.calls[:] = [call for call in held.calls if call.id not in known]


async def note_rest(runtime: Runtime, held: Claim) -> None:
    """Write down what no record has: calls of a run that ended without a result. Raises StorageUnavailable."""
    if unanswered(held):
        async with runtime.database.write() as connection:
            calls = await note_of(runtime, connection, held)
        forget(held, calls)
