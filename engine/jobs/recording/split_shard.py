"""Split: a shard that crashes its workers is split in two, until the input that crashes them is alone.

The first half keeps the shard's row, the second gets a new one. The split is made before an input without an outcome,
so no vector block spans both halves. A worker that still holds the unsplit claim can no longer change its state; its
results are still recorded, each in the half that owns the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.job_store import JobStore
from engine.jobs.leasing.claim import ClaimedShard, decode_bitmap
from engine.storage.database import Database
from models.base import db_now, new_id
from models.embedding import BatchOutcome
from models.job import Job, JobStatus, Shard, ShardInputs, ShardState

_pack = msgspec.msgpack.encode
_unpack = msgspec.msgpack.decode


async def split_shard(store: JobStore, shard_id: str, *where: ColumnElement[bool]) -> int:
    """Split a queued shard that satisfies `where`, in one transaction. Returns the number of resulting shards.

    1: only one input is open, so the shard was not split. 0: the shard does not satisfy the conditions.
    """
    running_job = select(Job.id).where(
        Job.id == Shard.job_id, Job.status == JobStatus.IN_PROGRESS, Job.deleted_at.is_(None)
    )
    async with store.database.write() as connection:
        shard = (
            await connection.execute(
                select(*Shard.__table__.columns, Shard.count.label("size"))
                .where(Shard.id == shard_id, Shard.state == ShardState.QUEUED, running_job.exists(), *where)
                .with_for_update()
            )
        ).one_or_none()
        if shard is None:
            return 0
        outcome_bits = decode_bitmap(shard.outcome_bitmap, shard.size)
        still_open = np.flatnonzero(~outcome_bits)
        if len(still_open) < 2:
            return 1
        split_at = int(still_open[len(still_open) // 2])
        stored = (
            await connection.execute(
                select(ShardInputs.inputs, ShardInputs.ids, ShardInputs.duplicates).where(
                    ShardInputs.shard_id == shard_id
                )
            )
        ).one()
        tokens, first, second = _split_inputs(stored, split_at)
        of_first = round(shard.tokens * tokens)
        # One more crash, and the half is split too.
        common = {
            "attempt": min(shard.attempt, store.settings.shard_attempts - 1),
            "worker_crashes": shard.worker_crashes,
            "crash_limit": shard.worker_crashes + 1,
            "next_run_at": db_now(),
        }
        await connection.execute(
            update(Shard)
            .where(Shard.id == shard_id)
            .values(
                count=split_at,
                tokens=of_first,
                outcome_bitmap=np.packbits(outcome_bits[:split_at]).tobytes(),
                fence=Shard.fence + 1,
                worker=None,
                **common,
            )
        )
        await connection.execute(update(ShardInputs).where(ShardInputs.shard_id == shard_id).values(first))
        second_half = {
            "first_index": shard.first_index + split_at,
            "count": shard.size - split_at,
            "tokens": shard.tokens - of_first,
            "outcome_bitmap": np.packbits(outcome_bits[split_at:]).tobytes(),
        }
        await _insert_half(connection, shard, common | second_half, second)
    return 2


async def _insert_half(
    connection: AsyncConnection, shard: Any, columns: dict[str, Any], inputs: dict[str, bytes | None]
) -> None:
    """Insert the second half of a shard, which its first index orders behind the first one."""
    await connection.execute(update(Job).where(Job.id == shard.job_id).values(open_shards=Job.open_shards + 1))
    half_id = new_id("shard")
    await connection.execute(
        insert(Shard).values(
            id=half_id,
            job_id=shard.job_id,
            variant=shard.variant,
            state=ShardState.QUEUED,
            fence=shard.fence + 1,
            last_error=shard.last_error,
            **columns,
        )
    )
    await connection.execute(insert(ShardInputs).values(shard_id=half_id, **inputs))


def _split_inputs(stored: Any, split_at: int) -> tuple[float, dict[str, bytes | None], dict[str, bytes | None]]:
    """The share of the text before the split, and the columns of inputs of both halves."""
    inputs = _unpack(stored.inputs)
    sizes = [len(item or "") + 1 for item in inputs]
    ids = _unpack(stored.ids) if stored.ids else None
    duplicates = list(zip(*_unpack(stored.duplicates), strict=True)) if stored.duplicates else []

    def part(low: int, high: int) -> dict[str, bytes | None]:
        within = [(position - low, first) for position, first in duplicates if low <= position < high]
        return {
            "inputs": _pack(inputs[low:high]),
            "ids": _pack(ids[low:high]) if ids else None,
            "duplicates": _pack(tuple(map(list, zip(*within, strict=True)))) if within else None,
        }

    return sum(sizes[:split_at]) / sum(sizes), part(0, split_at), part(split_at, len(inputs))


async def load_split_claims(database: Database, shard: ClaimedShard) -> list[ClaimedShard]:
    """The halves of the claimed shard, each as a claim of the same worker. Raises StorageUnavailable."""
    async with database.read() as connection:
        rows = (
            await connection.execute(
                select(Shard.id, Shard.first_index, Shard.count.label("size"))
                .where(
                    Shard.job_id == shard.job_id,
                    Shard.first_index >= shard.first_index,
                    Shard.first_index < shard.first_index + shard.count,
                )
                .order_by(Shard.first_index)
            )
        ).all()
    halves = []
    for row in rows:
        low = row.first_index - shard.first_index
        span = slice(low, low + row.size)
        halves.append(
            replace(
                shard,
                shard_id=row.id,
                first_index=row.first_index,
                count=row.size,
                outcome_bits=shard.outcome_bits[span],
                inputs=shard.inputs[span],
                duplicates={at - low: first for at, first in shard.duplicates.items() if low <= at < low + row.size},
            )
        )
    return halves


def outcomes_within(half: ClaimedShard, parts: Sequence[BatchOutcome]) -> list[BatchOutcome]:
    """The outcomes, and parts of outcomes, whose indexes are in this half."""
    outcomes = []
    for part in parts:
        positions = [i for i, index in enumerate(part.indexes) if 0 <= index - half.first_index < half.count]
        if len(positions) == len(part.indexes):
            outcomes.append(part)
        elif positions:
            outcomes.append(
                part._replace(
                    indexes=[part.indexes[i] for i in positions],
                    vectors=None if part.vectors is None else part.vectors[positions],
                    tokens=round(part.tokens * len(positions) / len(part.indexes)),
                    cost_usd=part.cost_usd * len(positions) / len(part.indexes),
                )
            )
    return outcomes
