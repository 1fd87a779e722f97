"""Record: stores vectors, errors, usage and counters of outcomes in one transaction. The first writer wins.

Vectors are accepted from any worker, even after its lease has run out, because they were paid for; but only for inputs
without an outcome. So records commute, and nothing is overwritten or counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from sqlalchemy import and_, case, cast, insert, null, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.job_store import JobStore
from engine.jobs.leasing.blocked import unblock_shards
from engine.jobs.leasing.claim import Bitmap, ClaimedShard, decode_bitmap
from engine.jobs.recording import (
    calls_without_results,
    cost_limit,
    duplicate_outcomes,
    surplus_results,
    truncated_inputs,
    wait_report,
)
from engine.jobs.recording.completion import (
    FINAL_STATUS,
    NO_OPEN_SHARD,
    end_columns,
    final_status_of,
    load_and_merge_errors,
    recount_open_shards,
    report_end,
)
from engine.jobs.recording.split_shard import load_split_claims, outcomes_within
from engine.ledger import usage_rows
from engine.observability import failpoints
from engine.observability.telemetry import count_cost
from models.base import db_now, random_id
from models.embedding import BatchOutcome, Call, InputError, Matrix
from models.errors import EmbedmillError, StorageUnavailable, UpstreamProtocolError
from models.job import ACTIVE_STATUSES, FINISHED, Job, JobInputError, JobStatus, Shard, ShardState, VectorBlock
from models.usage import UsageRecord

log = logging.getLogger("embedmill.jobs")
RATE_SAMPLE_S = 15.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result of a record: whether the shard is done, its job is active, and this record has finished it."""

    shard_done: bool
    job_active: bool
    has_finished_job: bool = False


SHARD_CLOSED = Recorded(shard_done=True, job_active=False)


class ShardWasSplit(Exception):
    """The shard was split after it was claimed."""


async def record(
    store: JobStore, shard: ClaimedShard, parts: Sequence[BatchOutcome], record_id: str = "", calls: Sequence[Call] = ()
) -> Recorded:
    """Record outcomes of a claimed shard. Raises StorageUnavailable: it was not committed, or the answer was lost.

    `record_id` identifies a repeated record; by default it is a new one. `calls`: those of the run without
    results, for the same transaction.
    """
    record_id = record_id or random_id("use")
    try:
        recorded = await _record(store, shard, parts, record_id, calls)
    except ShardWasSplit:
        halves = await load_split_claims(store.database, shard)
        if not halves:  # the job was removed meanwhile
            return await record(store, shard, parts, record_id, calls)
        recorded_halves = [
            await record(store, half, outcomes_within(half, parts), f"{record_id}@{half.first_index}", calls)
            for half in halves
        ]
        # The claim of the whole shard has ended: there is nothing to release and nothing to continue.
        return Recorded(shard_done=all(each.shard_done for each in recorded_halves), job_active=False)
    # A job that has just finished has no open shard, so none that is blocked.
    if recorded.shard_done and recorded is not SHARD_CLOSED and not recorded.has_finished_job:
        with suppress(StorageUnavailable):  # the sweep unblocks them too
            await unblock_shards(store, shard.shard_id)
    return recorded


async def _record(
    store: JobStore, shard: ClaimedShard, parts: Sequence[BatchOutcome], record_id: str, calls: Sequence[Call]
) -> Recorded:
    async with store.database.write() as connection:
        row = (
            await connection.execute(
                select(Shard.outcome_bitmap, Shard.state, Shard.fence, Shard.count.label("size"), Shard.reserved_usd)
                .where(Shard.id == shard.shard_id)
                .with_for_update()
            )
        ).one_or_none()
        if row is not None and row.size != shard.count:
            raise ShardWasSplit
        if row is None or row.state in (ShardState.DONE, ShardState.CANCELLED):
            await surplus_results.insert_surplus_results(connection, shard, parts, record_id, first_try=False)
            await calls_without_results.insert_run_calls(store.database, connection, shard, calls)
            return SHARD_CLOSED
        recorded = await _record_into(store, connection, shard, row, parts, record_id)
        await calls_without_results.insert_run_calls(store.database, connection, shard, calls)
        failpoints.hit("mid_commit")
    return recorded


async def _record_into(
    store: JobStore,
    connection: AsyncConnection,
    shard: ClaimedShard,
    row: Any,
    parts: Sequence[BatchOutcome],
    record_id: str,
) -> Recorded:
    """Store the outcomes of inputs without one, in the transaction that has locked the shard."""
    if row.fence != shard.fence:
        # Another worker has the shard, or a retry has reopened it: vectors are accepted, failures are not.
        parts = [part for part in parts if part.error is None]
    outcome_bits, new_parts, late = _new_outcomes(row.outcome_bitmap, shard, parts)
    ledger_rows = _usage_rows(shard, new_parts, record_id)
    if shard.max_cost_usd is not None:
        cost_usd = sum((row["cost_usd"] for row in ledger_rows), Decimal(0))
        reserved_usd = row.reserved_usd if row.state == ShardState.RUNNING else None
        if cost_usd and not await cost_limit.debit(connection, shard, reserved_usd, cost_usd):
            log.warning("late results would break the job's ceiling", extra={"job_id": shard.job_id})
            outcome_bits, new_parts, late = _new_outcomes(
                row.outcome_bitmap, shard, [part for part in parts if not part.cost_usd]
            )
            late += [part for part in parts if part.cost_usd]
            ledger_rows = []
    # Paid for without use: vectors that the database will never accept.
    unusable = [part for part in new_parts if part.error is not None and part.tokens]
    vectors = _vector_rows(shard, new_parts)
    failures = {index: part.error for part in new_parts if part.error is not None for index in part.indexes}
    if vectors:
        await connection.execute(insert(VectorBlock), vectors)
    if failures:
        await connection.execute(insert(JobInputError), _failure_rows(shard.job_id, failures))
    if ledger_rows:
        await connection.execute(insert(UsageRecord).values(at=db_now()), ledger_rows)
        count_cost(ledger_rows)
    done = bool(outcome_bits.all())
    values: dict[str, Any] = {"outcome_bitmap": np.packbits(outcome_bits).tobytes()}
    if done:
        values |= {
            "state": ShardState.DONE,
            "lease_until": None,
            "worker": None,
            "reserved_usd": None,
        }
    await connection.execute(update(Shard).where(Shard.id == shard.shard_id).values(values))
    if late:
        await surplus_results.insert_surplus_results(connection, shard, late, record_id, first_try=bool(new_parts))
    if unusable:
        await surplus_results.insert_surplus_results(
            connection, shard, unusable, f"{record_id}.unusable", first_try=True, code="storage_refused"
        )
    truncated_count = await truncated_inputs.insert_truncated(connection, shard, new_parts)
    status, has_finished = await _update_job(
        store, connection, shard, new_parts, failures, ledger_rows, done, truncated_count
    )
    return Recorded(done, job_active=status == JobStatus.IN_PROGRESS, has_finished_job=has_finished)


async def fail_remaining(store: JobStore, shard: ClaimedShard, error: EmbedmillError) -> Recorded:
    """Fail every input of the shard without an outcome with this error. Raises StorageUnavailable.

    A duplicate whose first occurrence has an outcome gets a copy of it instead.
    """
    code = "invalid_upstream_response" if isinstance(error, UpstreamProtocolError) else error.code
    reason = InputError(code, error.message, retryable=error.retryable)
    parts: list[BatchOutcome] = []
    fanout = duplicate_outcomes.DuplicateFanout(shard, parts.append)
    fanout.resolve(*await duplicate_outcomes.load_outcomes(store.database, shard, list(fanout.unresolved().values())))
    fanout.flush()
    parts += [
        BatchOutcome([index], None, reason, 0, False, Decimal(0), None)
        for index in (*map(shard.index, shard.open_positions()), *fanout.unresolved())
    ]
    return await record(store, shard, parts)


def _new_outcomes(
    packed: bytes, shard: ClaimedShard, parts: Sequence[BatchOutcome]
) -> tuple[Bitmap, list[BatchOutcome], list[BatchOutcome]]:
    """The outcome bits with the parts added, the parts that are new, and those that came too late."""
    outcome_bits = decode_bitmap(packed, shard.count)
    new_parts: list[BatchOutcome] = []
    late: list[BatchOutcome] = []
    for part in parts:
        new = _only_new(part, shard, outcome_bits)
        if new is None:
            late.append(part)
            continue
        new_parts.append(new)
        if new is not part:
            dropped = len(part.indexes) - len(new.indexes)
            late.append(
                part._replace(
                    indexes=part.indexes[:dropped],
                    vectors=None,
                    tokens=part.tokens - new.tokens,
                    cost_usd=part.cost_usd - new.cost_usd,
                )
            )
    return outcome_bits, new_parts, late


def _usage_rows(shard: ClaimedShard, new_parts: Sequence[BatchOutcome], record_id: str) -> list[dict[str, Any]]:
    return usage_rows.delivered(
        [part for part in new_parts if part.error is None],
        project=shard.project,
        key_id=shard.key_id,
        lane="bulk",
        alias=shard.alias,
        user=shard.options.user,
        job_id=shard.job_id,
        row_id=f"{record_id}.",
    )


def _only_new(part: BatchOutcome, shard: ClaimedShard, outcome_bits: Bitmap) -> BatchOutcome | None:
    """The inputs of a part that have no outcome yet, marked in `settled`; None when there are none.

    Usage is split by inputs: the share of inputs that had an outcome already counts as late, so wasted.
    """
    positions = np.asarray(part.indexes, dtype=np.int64) - shard.first_index
    new = ~outcome_bits[positions]
    outcome_bits[positions] = True
    if new.all():
        return part
    if not new.any():
        return None
    new_rows = np.flatnonzero(new).tolist()
    share = len(new_rows) / len(positions)
    return part._replace(
        indexes=[part.indexes[i] for i in new_rows],
        vectors=None if part.vectors is None else part.vectors[new_rows],
        tokens=round(part.tokens * share),
        cost_usd=part.cost_usd * len(new_rows) / len(positions),
    )


def _vector_rows(shard: ClaimedShard, parts: Sequence[BatchOutcome]) -> list[dict[str, Any]]:
    """Rows of vector blocks: consecutive inputs share one block, whatever batches they came in."""
    blocks: list[tuple[int, Matrix]] = []
    for part in parts:
        if part.vectors is None:
            continue
        # A batch is split where its indexes jump, because inputs in between had their outcome before.
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
        rows.append({"job_id": shard.job_id, "first_index": first, "count": following - first, "data": data})
    return rows


def _failure_rows(job_id: str, failures: dict[int, InputError]) -> list[dict[str, Any]]:
    return [
        {"job_id": job_id, "index": index, "code": e.code, "message": e.message, "retryable": e.retryable}
        for index, e in failures.items()
    ]


async def _update_job(
    store: JobStore,
    connection: AsyncConnection,
    shard: ClaimedShard,
    new_parts: Sequence[BatchOutcome],
    failures: dict[int, InputError],
    ledger_rows: Sequence[dict[str, Any]],
    done: bool,
    truncated_count: int,
) -> tuple[str | None, bool]:
    """Add to the job's counters, and finish the job with its last open shard. The job's row is locked last.

    Returns the job's status, None for a deleted job, and whether this has finished it.
    """
    vectors = sum(len(part.indexes) for part in new_parts if part.error is None)
    prompt_tokens = sum(part.tokens for part in new_parts if part.error is None)
    values: dict[Any, Any] = {
        Job.completed: Job.completed + vectors,
        Job.failed: Job.failed + len(failures),
        Job.prompt_tokens: Job.prompt_tokens + prompt_tokens,
        Job.cost_usd: Job.cost_usd + sum((row["cost_usd"] for row in ledger_rows), Decimal(0)),
        Job.version: Job.version + 1,
    }
    if copied := sum(len(part.indexes) for part in new_parts if duplicate_outcomes.is_duplicate(part)):
        values[Job.deduplicated] = Job.deduplicated + copied
    if truncated_count:
        values[Job.truncated] = Job.truncated + truncated_count
    if any(part.tokens_estimated for part in new_parts):
        values[Job.usage_estimated] = True
    if failures:
        values[Job.error_summary] = await load_and_merge_errors(connection, shard.job_id, failures)
    if vectors:
        values |= wait_report.waiting_columns(shard)
        values |= _shift_rate_samples()
    if done:
        values |= {Job.open_shards: Job.open_shards - 1} | _end_with_last_shard(store, values)
    row = (
        await connection.execute(
            update(Job)
            .where(Job.id == shard.job_id)
            .values(values)
            .returning(Job.status, Job.open_shards, Job.total, (db_now() - Job.created_at).label("age_s"))
        )
    ).one_or_none()
    if row is None:
        return None, False
    if row.open_shards or row.total is None or row.status == JobStatus.EXPIRED:
        return str(row.status), False
    status = row.status
    if status not in FINISHED:
        # Another shard closed at the same time: the statement waited for the job's row, and still saw that shard open.
        status = await _finish_job(store, connection, shard.job_id, status)
    if status is None:
        return str(row.status), False
    failpoints.hit("during_finalize")
    await report_end(connection, shard.job_id, status, age_s=row.age_s)
    return str(status), True


async def _finish_job(store: JobStore, connection: AsyncConnection, job_id: str, status: str) -> str | None:
    """End the job unless a shard is open although its counter says none. Returns the final status or None."""
    final_status: Any = JobStatus.CANCELLED.value if status == JobStatus.CANCELLING else FINAL_STATUS
    ended = (
        update(Job)
        .where(Job.id == job_id, NO_OPEN_SHARD)
        .values(status=final_status, **end_columns(store.settings))
        .returning(Job.status)
    )
    found = (await connection.execute(ended)).scalar_one_or_none()
    if found is None:
        await recount_open_shards(connection, job_id)
    return found


def _end_with_last_shard(store: JobStore, values: dict[Any, Any]) -> dict[Any, Any]:
    """Columns that end the job if this shard is its last open one, for the statement with these values.

    A job is not ended while a shard is open although its counter says none.
    """
    is_last = and_(
        Job.open_shards <= 1,
        Job.total.is_not(None),
        Job.status.in_((*ACTIVE_STATUSES, JobStatus.CANCELLING)),
        NO_OPEN_SHARD,
    )
    final_status = final_status_of(values[Job.completed], values[Job.failed])
    ending = {getattr(Job, name): value for name, value in end_columns(store.settings).items()}
    ending[Job.status] = case((Job.status == JobStatus.CANCELLING, JobStatus.CANCELLED.value), else_=final_status)

    def typed(column: Any, value: Any) -> Any:
        return cast(null(), column.type) if value is None else value

    return {
        column: case((is_last, typed(column, value)), else_=typed(column, values.get(column, column)))
        for column, value in ending.items()
    }


def _shift_rate_samples() -> dict[Any, Any]:
    """Shift the two rate samples when the newer one is RATE_SAMPLE_S old."""
    due = (Job.rate_sample_at.is_(None)) | (Job.rate_sample_at < db_now() - RATE_SAMPLE_S)
    return {
        Job.prev_rate_sample_at: case((due, Job.rate_sample_at), else_=Job.prev_rate_sample_at),
        Job.prev_rate_sample_done: case((due, Job.rate_sample_done), else_=Job.prev_rate_sample_done),
        Job.prev_rate_sample_tokens: case((due, Job.rate_sample_tokens), else_=Job.prev_rate_sample_tokens),
        Job.rate_sample_at: case((due, db_now()), else_=Job.rate_sample_at),
        Job.rate_sample_done: case((due, Job.completed + Job.failed), else_=Job.rate_sample_done),
        Job.rate_sample_tokens: case((due, Job.prompt_tokens), else_=Job.rate_sample_tokens),
    }
