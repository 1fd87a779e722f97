"""Calls of a job without results that were billed, or may have been. Each is recorded exactly once.

Wasted: answered, but the reply was refused, came too late, or was a probe. Ambiguous: sent and not answered. Both are
rows of the ledger, are added to the job's counters, and count against its cost limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import and_, case, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.durability.call_journal import InFlightCall
from engine.jobs.leasing.claim import ClaimedShard
from engine.ledger import usage_rows
from engine.observability.telemetry import AMBIGUOUS_CALLS, count_cost
from engine.storage.database import Database
from models.base import db_now
from models.batch import JobVariant
from models.embedding import Call
from models.job import AmbiguousCall, Job, Shard, ShardState
from models.usage import UsageKind, UsageRecord

ROWS_PER_STATEMENT = 500


def unanswered(entry: InFlightCall, code: str, *, ended_at: float) -> Call:
    """A call of the journal that may have been sent and was not answered, at its highest possible cost."""
    return Call(
        entry.provider,
        entry.upstream_model,
        False,
        None,
        entry.started_at,
        ended_at,
        error=code,
        ambiguous=True,
        inputs=entry.inputs,
        id=entry.call_id,
        tokens=entry.tokens,
        tokens_estimated=True,
        cost_usd=entry.cost_usd,
        usd_per_million_tokens=entry.usd_per_million_tokens,
    )


def count_unanswered(calls: Iterable[Call]) -> None:
    """Count calls that nothing else has counted: their process or their run ended before they did."""
    for call in calls:
        AMBIGUOUS_CALLS.labels(call.provider, call.upstream_model).inc()


async def insert_calls(
    database: Database,
    connection: AsyncConnection,
    *,
    project: str,
    job_id: str,
    shard_id: str,
    calls: Sequence[Call],
) -> list[Call]:
    """Insert calls of a job without results. Returns those that were new. Locks the job after the shard.

    A call is identified by its id, so a repeated insert changes nothing.
    """
    if not calls:
        return []
    job = (await connection.execute(_model_of(job_id, shard_id))).one_or_none()
    options = {} if job is None else job.options if job.variant_options is None else job.variant_options
    rows = usage_rows.of_calls(
        calls,
        project=project,
        key_id=job.key_id if job else "",
        lane="bulk",
        alias=(job.variant_alias or job.alias) if job else "",
        user=options.get("user"),
        job_id=job_id,
    )
    new = await _add(database, connection, calls, rows)
    unanswered = [call for call in new if call.ambiguous]
    if unanswered:
        await connection.execute(
            database.insert(AmbiguousCall)
            .values(
                [
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
                    for call in unanswered
                ]
            )
            .on_conflict_do_nothing()
        )
    if new:
        charged = {row["id"]: row for row in rows}
        await add_to_counters(connection, job_id, [charged[call.id] for call in new])
    return new


def _model_of(job_id: str, shard_id: str) -> Any:
    """The key of the job, its model and options, and those of the shard's variant where it has one."""
    return (
        select(
            Job.key_id,
            Job.alias,
            Job.options,
            JobVariant.alias.label("variant_alias"),
            JobVariant.options.label("variant_options"),
        )
        .outerjoin(Shard, and_(Shard.job_id == Job.id, Shard.id == shard_id))
        .outerjoin(JobVariant, and_(JobVariant.job_id == Job.id, JobVariant.number == Shard.variant))
        .where(Job.id == job_id)
    )


async def _add(
    database: Database, connection: AsyncConnection, calls: Sequence[Call], rows: Sequence[dict[str, Any]]
) -> list[Call]:
    """Insert the rows that are not in the ledger yet. Returns their calls."""
    ids: set[str] = set()
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        chunk = [row | {"at": db_now()} for row in rows[start : start + ROWS_PER_STATEMENT]]
        added = database.insert(UsageRecord).values(chunk).on_conflict_do_nothing().returning(UsageRecord.id)
        ids |= set((await connection.execute(added)).scalars())
    count_cost(row for row in rows if row["id"] in ids)
    return [call for call in calls if call.id in ids]


async def add_to_counters(connection: AsyncConnection, job_id: str, rows: Sequence[dict[str, Any]]) -> None:
    """Add wasted and ambiguous rows of the ledger to the counters of their job."""
    wasted = [row for row in rows if row["kind"] == UsageKind.WASTED]
    unanswered = [row for row in rows if row["kind"] == UsageKind.AMBIGUOUS]
    values: dict[Any, Any] = {Job.version: Job.version + 1}
    if wasted:
        cost_usd = sum((row["cost_usd"] for row in wasted), Decimal(0))
        values |= {
            Job.wasted_calls: Job.wasted_calls + sum(row["calls"] for row in wasted),
            Job.wasted_inputs: Job.wasted_inputs + sum(row["inputs"] for row in wasted),
            Job.wasted_tokens: Job.wasted_tokens + sum(row["prompt_tokens"] for row in wasted),
            Job.wasted_cost_usd: Job.wasted_cost_usd + cost_usd,
            Job.cost_usd: Job.cost_usd + cost_usd,
        }
    if unanswered:
        cost_usd = sum((row["cost_usd"] for row in unanswered), Decimal(0))
        values |= {
            Job.ambiguous_calls: Job.ambiguous_calls + len(unanswered),
            Job.ambiguous_inputs: Job.ambiguous_inputs + sum(row["inputs"] for row in unanswered),
            Job.ambiguous_tokens: Job.ambiguous_tokens + sum(row["prompt_tokens"] for row in unanswered),
            Job.ambiguous_cost_usd: Job.ambiguous_cost_usd + cost_usd,
        }
    await connection.execute(update(Job).where(Job.id == job_id).values(values))


async def insert_run_calls(
    database: Database, connection: AsyncConnection, shard: ClaimedShard, calls: Sequence[Call]
) -> list[Call]:
    """Insert calls of a run. Returns those that were new. Their cost is taken from the shard's reservation."""
    if shard.max_cost_usd is not None and calls:
        cost_usd = sum((call.cost_usd for call in calls), Decimal(0))
        rest = Shard.reserved_usd - cost_usd
        await connection.execute(
            update(Shard)
            .where(
                Shard.id == shard.shard_id,
                Shard.fence == shard.fence,
                Shard.state == ShardState.RUNNING,
                Shard.reserved_usd.is_not(None),
            )
            .values(reserved_usd=case((Shard.reserved_usd > cost_usd, rest), else_=0))
        )
    return await insert_calls(
        database,
        connection,
        project=shard.project,
        job_id=shard.job_id,
        shard_id=shard.shard_id,
        calls=calls,
    )
