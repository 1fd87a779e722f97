"""Refused inputs: inputs refused on arrival, stored as ranges: one row for each reason in a shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.recording.completion import count_error
from engine.jobs.shard_draft import MAX_RUN_INPUTS, ShardDraft
from models.embedding import InputError
from models.job import RefusedInputs

_COLUMNS = (
    RefusedInputs.first_index,
    RefusedInputs.last_index,
    RefusedInputs.code,
    RefusedInputs.message,
    RefusedInputs.mask,
)
RANGES_PER_QUERY = 64


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused input and the reason."""

    index: int
    code: str
    message: str
    retryable: bool = False


def refused_rows(job_id: str, draft: ShardDraft) -> list[dict[str, Any]]:
    """The rows of refused_inputs for the refused lines of a shard."""
    if draft.repeated is not None:
        return [_row(job_id, draft.repeated, draft.first_index, draft.first_index + len(draft) - 1, len(draft), None)]
    positions: dict[InputError, list[int]] = {}
    for position, error in draft.lines.errors.items():
        positions.setdefault(error, []).append(position)
    rows = []
    for error, found in positions.items():
        first, last = min(found), max(found)
        mask = None
        if last - first + 1 > len(found):
            bits = np.zeros(last - first + 1, dtype=bool)
            bits[np.asarray(found) - first] = True
            mask = np.packbits(bits).tobytes()
        rows.append(_row(job_id, error, draft.first_index + first, draft.first_index + last, len(found), mask))
    return rows


def _row(job_id: str, error: InputError, first: int, last: int, count: int, mask: bytes | None) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "first_index": first,
        "last_index": last,
        "count": count,
        "code": error.code,
        "message": error.message,
        "mask": mask,
    }


def add_to_summary(summary: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A job's error summary with these rows added."""
    by_code: dict[str, dict[str, Any]] = {entry["code"]: dict(entry) for entry in summary}
    for row in sorted(rows, key=lambda row: int(row["first_index"])):
        count_error(by_code, row["first_index"], row["code"], row["message"], count=row["count"])
    return list(by_code.values())


async def summary(connection: AsyncConnection, job_id: str) -> list[dict[str, Any]]:
    """The error summary of all refused inputs of a job."""
    found = await connection.execute(
        select(
            RefusedInputs.code,
            RefusedInputs.message,
            func.min(RefusedInputs.first_index).label("first_index"),
            func.sum(RefusedInputs.count).label("inputs"),
        )
        .where(RefusedInputs.job_id == job_id)
        .group_by(RefusedInputs.code, RefusedInputs.message)
    )
    return add_to_summary([], [dict(row._mapping) | {"count": int(row.inputs)} for row in found])


async def between(connection: AsyncConnection, job_id: str, start: int, stop: int) -> list[Refusal]:
    """The refused inputs with indexes start..stop (stop excluded), in order."""
    rows = await connection.execute(
        select(*_COLUMNS).where(
            RefusedInputs.job_id == job_id,
            RefusedInputs.first_index > start - MAX_RUN_INPUTS,
            RefusedInputs.first_index < stop,
            RefusedInputs.last_index >= start,
        )
    )
    return sorted((each for row in rows for each in _expand(row, start, stop)), key=lambda each: each.index)


async def next_after(connection: AsyncConnection, job_id: str, after: int, limit: int) -> list[Refusal]:
    """Up to `limit` refused inputs after an index, in order; fewer only at the end."""
    rows = (
        await connection.execute(
            select(*_COLUMNS)
            .where(
                RefusedInputs.job_id == job_id,
                RefusedInputs.first_index > after - MAX_RUN_INPUTS,
                RefusedInputs.last_index > after,
            )
            .order_by(RefusedInputs.first_index)
            .limit(RANGES_PER_QUERY)
        )
    ).all()
    if not rows:
        return []
    # Unread ranges start at the last range that was read or later.
    stop = (
        after + 1 + MAX_RUN_INPUTS * RANGES_PER_QUERY if len(rows) < RANGES_PER_QUERY else int(rows[-1].first_index) + 1
    )
    found: list[Refusal] = []
    for row in rows:
        if len(found) >= limit:
            found = sorted(found, key=lambda each: each.index)[:limit]
            if row.first_index > found[-1].index:  # and so do all later ranges
                break
        found += _expand(row, after + 1, stop, limit)
    return sorted(found, key=lambda each: each.index)[:limit]


def _expand(row: Any, start: int, stop: int, limit: int | None = None) -> Iterator[Refusal]:
    low, high = max(start, row.first_index), min(stop, row.last_index + 1)
    if low >= high:
        return
    if row.mask is None:
        indexes = range(low, high)
    else:
        bits = np.unpackbits(np.frombuffer(row.mask, dtype=np.uint8), count=row.last_index - row.first_index + 1)
        indexes = (np.flatnonzero(bits[low - row.first_index : high - row.first_index]) + low).tolist()
    for index in indexes[:limit]:
        yield Refusal(index, row.code, row.message)
