"""Record: vectors, errors, usage and counters of what has landed, in one transaction, first writer wins.

A result is accepted from anyone, even from a worker whose lease has run out, for it was paid for; but only for inputs
that have no outcome yet. So completions commute, and nothing is ever overwritten or counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
from sqlalchemy import case, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine import failpoints, usage
from engine.jobs import ambiguous, budget, held_up, twins
from engine.jobs.claim import Bits, Claim, settled_bits
from engine.jobs.finish import FINAL_STATUS, merge_errors
from engine.jobs.halve import halves_of, parts_in
from engine.runtime import Runtime
from models.base import db_now
from models.embedding import InputError, Landed, Matrix
from models.errors import EmbedmillError, UpstreamProtocolError
from models.job import UNDER_WAY, InputFailure, Job, JobStatus, Shard, ShardState, VectorRun
from models.usage import UsageRecord

log = logging.getLogger("embedmill.jobs")
MARK_S = 15.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a record: whether the shard is done, and whether the job wants more of it."""

    shard_done: bool
    go_on: bool


GONE = Recorded(shard_done=True, go_on=False)


class Halved(Exception):
    """The claim is of a shard that was larger."""


async def record(runtime: Runtime, held: Claim, parts: Sequence[Landed]) -> Recorded:
    """Keep what landed. Raises StorageUnavailable: then nothing was kept, or its answer was lost."""
    try:
        return await _record(runtime, held, parts)
    except Halved:
        halves = await halves_of(runtime, held)
        recorded = [await record(runtime, half, parts_in(half, parts)) for half in halves]
        # None of them is the claim's any more: there is nothing to give back, and nothing to go on with.
        return Recorded(shard_done=all(each.shard_done for each in recorded), go_on=False)


async def _record(runtime: Runtime, held: Claim, parts: Sequence[Landed]) -> Recorded:
    async with runtime.database.write() as connection:
        shard = (
            await connection.execute(
                select(Shard.settled, Shard.state, Shard.fence, Shard.count.label("size"), Shard.allowance_usd)
                .where(Shard.id == held.shard_id)
                .with_for_update()
            )
        ).one_or_none()
        if shard is not None and shard.size != held.count:
            raise Halved
        if shard is None or shard.state in (ShardState.DONE, ShardState.CANCELLED):
            return GONE
        if shard.fence != held.fence:
            # Another has the shard, or a retry has opened it again. What was paid for is welcome; a failure is not.
            parts = [part for part in parts if part.error is None]
        settled, fresh, ledger = _news(shard.settled, held, parts)
        if held.max_cost_usd is not None:
            cost_usd = sum((row["cost_usd"] for row in ledger), Decimal(0))
            allowance_usd = shard.allowance_usd if shard.state == ShardState.RUNNING else None
            if cost_usd and not await budget.charge(connection, held, allowance_usd, cost_usd):
                log.warning("late results would break the job's ceiling", extra={"job_id": held.job_id})
                settled, fresh, ledger = _news(shard.settled, held, [part for part in parts if not part.cost_usd])
        vectors = _runs(held, fresh)
        failures = {index: part.error for part in fresh if part.error is not None for index in part.indexes}
        if vectors:
            await connection.execute(insert(VectorRun), vectors)
        if failures:
            await connection.execute(insert(InputFailure), _failure_rows(held.job_id, failures))
        if ledger:
            await connection.execute(insert(UsageRecord).values(at=db_now()), ledger)
        done = bool(settled.all())
        values: dict[str, Any] = {"settled": np.packbits(settled).tobytes()}
        if done:
            values |= {"state": ShardState.DONE, "lease_until": None, "rung_at": None, "worker": None}
        await connection.execute(update(Shard).where(Shard.id == held.shard_id).values(values))
        status = await _count(connection, held, fresh, failures, ledger, done)
        noted = await ambiguous.note_of(runtime, connection, held)
        failpoints.hit("mid_commit")
    ambiguous.forget(held, noted)
    return Recorded(shard_done=done, go_on=status == JobStatus.IN_PROGRESS)


async def fail_rest(runtime: Runtime, held: Claim, error: EmbedmillError) -> Recorded:
    """Give every input of the shard that has no outcome this error: its attempts are spent.

    A twin whose first has its outcome gets that: a copy needs no attempt.
    """
    code = "invalid_upstream_response" if isinstance(error, UpstreamProtocolError) else error.code
    reason = InputError(code, error.message, retryable=error.retryable)
    parts: list[Landed] = []
    copies = twins.Copies(held, parts.append)
    copies.know(await twins.settled(runtime, held, list(copies.missing().values())))
    copies.flush()
    parts += [
        Landed([index], None, reason, 0, False, Decimal(0), None)
        for index in (*map(held.index, held.waiting()), *copies.missing())
    ]
    return await record(runtime, held, parts)


def _news(packed: bytes, held: Claim, parts: Sequence[Landed]) -> tuple[Bits, list[Landed], list[dict[str, Any]]]:
    """What the parts bring beyond what is settled: the bits with them, they themselves, and their ledger rows."""
    settled = settled_bits(packed, held.count)
    fresh = [part for part in (_fresh_of(part, held, settled) for part in parts) if part is not None]
    ledger = usage.rows(
        fresh,
        project=held.project,
        key_id=held.key_id,
        lane="bulk",
        alias=held.alias,
        user=held.options.user,
        job_id=held.job_id,
    )
    return settled, fresh, ledger


def _fresh_of(part: Landed, held: Claim, settled: Bits) -> Landed | None:
    """The inputs of a part that have no outcome yet, marked in `settled`; None when there are none.

    Usage follows the inputs: what a twin has stored and charged already is not charged again.
    """
    positions = np.asarray(part.indexes, dtype=np.int64) - held.first_index
    new = ~settled[positions]
    settled[positions] = True
    if new.all():
        return part
    if not new.any():
        return None
    kept = np.flatnonzero(new).tolist()
    share = len(kept) / len(positions)
    return replace(
        part,
        indexes=[part.indexes[i] for i in kept],
        vectors=None if part.vectors is None else part.vectors[kept],
        tokens=round(part.tokens * share),
        cost_usd=part.cost_usd * len(kept) / len(positions),
    )


def _runs(held: Claim, parts: Sequence[Landed]) -> list[dict[str, Any]]:
    """Rows for the vectors: neighbours, whichever batches they came in, share one blob."""
    blocks: list[tuple[int, Matrix]] = []
    for part in parts:
        if part.vectors is None:
            continue
        # A batch is one run unless inputs between were settled before: cut it where its indexes jump.
        indexes = np.asarray(part.indexes, dtype=np.int64)
        jumps = np.flatnonzero(np.diff(indexes) != 1) + 1
        for low, high in zip([0, *jumps], [*jumps, len(indexes)], strict=True):
            blocks.append((int(indexes[low]), part.vectors[low:high]))
    blocks.sort(key=lambda block: block[0])
    rows: list[dict[str, Any]] = []
    at = 0
    while at < len(blocks):
        first, rows_of_run = blocks[at][0], [blocks[at][1]]
        following = first + len(blocks[at][1])
        at += 1
        while at < len(blocks) and blocks[at][0] == following:
            rows_of_run.append(blocks[at][1])
            following += len(blocks[at][1])
            at += 1
        data = b"".join(block.data for block in rows_of_run)  # the one copy between the wire and the database
        rows.append({"job_id": held.job_id, "first_index": first, "count": following - first, "data": data})
    return rows


def _failure_rows(job_id: str, failures: dict[int, InputError]) -> list[dict[str, Any]]:
    return [
        {"job_id": job_id, "index": index, "code": e.code, "message": e.message, "retryable": e.retryable}
        for index, e in failures.items()
    ]


async def _count(
    connection: AsyncConnection,
    held: Claim,
    fresh: Sequence[Landed],
    failures: dict[int, InputError],
    ledger: Sequence[dict[str, Any]],
    done: bool,
) -> str | None:
    """Add to the job's counters and, with its last open shard, finish it. The job's row is locked last, and briefly."""
    vectors = sum(len(part.indexes) for part in fresh if part.error is None)
    prompt_tokens = sum(part.tokens for part in fresh)
    values: dict[Any, Any] = {
        Job.completed: Job.completed + vectors,
        Job.failed: Job.failed + len(failures),
        Job.prompt_tokens: Job.prompt_tokens + prompt_tokens,
        Job.cost_usd: Job.cost_usd + sum((row["cost_usd"] for row in ledger), Decimal(0)),
        Job.version: Job.version + 1,
    }
    if copied := sum(len(part.indexes) for part in fresh if twins.is_copy(part)):
        values[Job.deduplicated] = Job.deduplicated + copied
    if any(part.tokens_estimated for part in fresh):
        values[Job.usage_estimated] = True
    if failures:
        values[Job.error_summary] = await merge_errors(connection, held.job_id, failures)
    if vectors:
        values |= held_up.values(held, done=done)
        values |= _marks()
    if done:
        values[Job.open_shards] = Job.open_shards - 1
    row = (
        await connection.execute(
            update(Job).where(Job.id == held.job_id).values(values).returning(Job.status, Job.open_shards, Job.total)
        )
    ).one_or_none()
    if row is None:
        return None
    if row.open_shards == 0 and row.total is not None:
        if row.status in UNDER_WAY:
            await _end(connection, held.job_id, FINAL_STATUS)
            return JobStatus.COMPLETED
        if row.status == JobStatus.CANCELLING:
            await _end(connection, held.job_id, JobStatus.CANCELLED.value)
    return str(row.status)


async def _end(connection: AsyncConnection, job_id: str, status: Any) -> None:
    failpoints.hit("during_finalize")
    await connection.execute(
        update(Job).where(Job.id == job_id).values(status=status, finished_at=db_now(), waiting_on=None)
    )


def _marks() -> dict[Any, Any]:
    """Shift the two marks of progress when the newer one is old enough."""
    due = (Job.mark_at.is_(None)) | (Job.mark_at < db_now() - MARK_S)
    return {
        Job.earlier_mark_at: case((due, Job.mark_at), else_=Job.earlier_mark_at),
        Job.earlier_mark_done: case((due, Job.mark_done), else_=Job.earlier_mark_done),
        Job.earlier_mark_tokens: case((due, Job.mark_tokens), else_=Job.earlier_mark_tokens),
        Job.mark_at: case((due, db_now()), else_=Job.mark_at),
        Job.mark_done: case((due, Job.completed + Job.failed), else_=Job.mark_done),
        Job.mark_tokens: case((due, Job.prompt_tokens), else_=Job.mark_tokens),
    }
