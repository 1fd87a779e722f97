"""The rows of one shard of an upload: the shard, its inputs, and what is known of them on arrival."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.leasing import duplicate_codec
from engine.jobs.leasing.claim import Bitmap
from engine.jobs.recording import truncated_inputs
from engine.jobs.shard_draft import ShardDraft
from models.base import db_now, new_id
from models.job import RefusedInputs, Shard, ShardInputs, ShardState, TruncatedInputs


def is_open(draft: ShardDraft) -> bool:
    """True when an input of the shard needs an outcome."""
    return len(draft) > 0 and not _outcome_bits(draft).all()


async def insert_shard(
    connection: AsyncConnection,
    job_id: str,
    draft: ShardDraft,
    refused: Sequence[dict[str, Any]],
    *,
    variant: int | None = None,
) -> None:
    """Insert the rows of a shard, after the row of its job. `refused`: rows of inputs refused on arrival."""
    shard_id = new_id("shard")
    await connection.execute(
        insert(Shard).values(
            id=shard_id,
            job_id=job_id,
            first_index=draft.first_index,
            count=len(draft),
            variant=variant,
            tokens=draft.tokens,
            state=ShardState.QUEUED if is_open(draft) else ShardState.DONE,
            attempt=0,
            fence=0,
            next_run_at=db_now(),
            outcome_bitmap=np.packbits(_outcome_bits(draft)).tobytes(),
        )
    )
    await connection.execute(
        insert(ShardInputs).values(
            shard_id=shard_id,
            inputs=draft.packed_inputs,
            ids=draft.packed_ids,
            duplicates=duplicate_codec.encode(draft.duplicates),
        )
    )
    if draft.truncated:
        indexes = [draft.first_index + position for position in draft.truncated]
        await connection.execute(insert(TruncatedInputs).values(truncated_inputs.row_of(job_id, indexes)))
    if refused:
        await connection.execute(insert(RefusedInputs), refused)


def _outcome_bits(draft: ShardDraft) -> Bitmap:
    """One bool per input: True where it was refused."""
    bits = np.full(len(draft), draft.repeated is not None)
    bits[list(draft.lines.errors)] = True
    return bits
