"""Duplicates: inputs that occurred before in their job. They get the outcome of the first occurrence without a call.

The first occurrence always has the lower index, so shards cannot wait for each other in a cycle.
"""

from __future__ import annotations

import asyncio
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from decimal import Decimal
from urllib.parse import quote

import numpy as np
from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.truncated_inputs import truncated_among
from engine.storage import vectors
from engine.storage.database import BUSY_TIMEOUT_S, Database
from models.base import Blob
from models.embedding import BatchOutcome, InputError, Matrix
from models.errors import StorageUnavailable
from models.job import JobInputError, VectorBlock

Outcome = Matrix | InputError
"""One row, or the reason why there is none."""

INPUTS_PER_QUERY = 1024
READ_BYTES = 8 * 1024 * 1024
BLOCKS_PER_QUERY = 64


class DuplicateFanout:
    """A sink that adds the copied outcomes of one shard's duplicates to the outcomes of its calls.

    A duplicate is emitted right after the input before it, so that both end up in one vector block. Otherwise a shard
    in which every second input is a duplicate would become thousands of rows.
    """

    def __init__(self, shard: ClaimedShard, on_outcome: Callable[[BatchOutcome], None]) -> None:
        self._on_outcome = on_outcome
        open_indexes = [shard.index(position) for position in shard.open_positions()]
        self._unresolved = {shard.index(position): first for position, first in shard.open_duplicates().items()}
        here = set(open_indexes)
        self._duplicates_of: dict[int, list[int]] = {}
        self._anchored: dict[int, list[int]] = {}
        self._unanchored: list[int] = []  # duplicates whose preceding input is already done
        for index, first in self._unresolved.items():
            if first in here:
                self._duplicates_of.setdefault(first, []).append(index)
            predecessors = bisect_right(open_indexes, index)
            (
                self._anchored.setdefault(open_indexes[predecessors - 1], []) if predecessors else self._unanchored
            ).append(index)
        self._resolved: dict[int, Outcome] = {}
        self._truncated: set[int] = set()  # duplicates of truncated inputs

    def unresolved(self) -> dict[int, int]:
        """Duplicates without a known outcome: index, and index of the first occurrence."""
        return self._unresolved

    def resolve(self, outcomes: Mapping[int, Outcome], truncated: Set[int] = frozenset()) -> None:
        """Accept outcomes of first occurrences, by index, and the indexes of truncated ones."""
        for index, first in list(self._unresolved.items()):
            if first in outcomes:
                if first in truncated:
                    self._truncated.add(index)
                self._resolved[index] = outcomes[first]
                del self._unresolved[index]

    def __call__(self, part: BatchOutcome) -> None:
        """Pass an outcome on, followed by the duplicates next to it."""
        for row, index in enumerate(part.indexes):
            for duplicate in self._duplicates_of.pop(index, ()):
                outcome = part.error if part.vectors is None else part.vectors[row]
                if outcome is not None and self._unresolved.pop(duplicate, None) is not None:
                    self._resolved[duplicate] = outcome
                    if part.truncated and index in part.truncated:
                        self._truncated.add(duplicate)
            self._unanchored += self._anchored.pop(index, ())
        self._on_outcome(part)
        self._emit([index for index in self._unanchored if index in self._resolved])
        self._unanchored = [index for index in self._unanchored if index in self._unresolved]

    def flush(self) -> None:
        """Emit all duplicates with a known outcome."""
        self._emit(sorted(self._resolved))

    def _emit(self, indexes: Sequence[int]) -> None:
        outcomes = [(index, self._resolved.pop(index)) for index in indexes]
        rows = [(index, outcome) for index, outcome in outcomes if not isinstance(outcome, InputError)]
        if rows:
            copied = [index for index, _ in rows]
            part = _copied_outcome(copied, np.stack([row for _, row in rows]), None)
            truncated = self._truncated.intersection(copied)
            self._on_outcome(part._replace(truncated=sorted(truncated)) if truncated else part)
        for index, outcome in outcomes:
            if isinstance(outcome, InputError):
                self._on_outcome(_copied_outcome([index], None, outcome))


def is_duplicate(part: BatchOutcome) -> bool:
    """True for vectors that were copied without a call."""
    return part.route is None and part.error is None


def _copied_outcome(indexes: list[int], rows: Matrix | None, error: InputError | None) -> BatchOutcome:
    return BatchOutcome(indexes, rows, error, 0, False, Decimal(0), None)


async def load_outcomes(
    database: Database, shard: ClaimedShard, firsts: Sequence[int]
) -> tuple[dict[int, Outcome], set[int]]:
    """The recorded outcomes of these inputs of the job by index, and the indexes of truncated ones.

    Raises StorageUnavailable.
    """
    outcomes: dict[int, Outcome] = {}
    truncated: set[int] = set()
    unique_firsts = sorted(set(firsts))
    for low in range(0, len(unique_firsts), INPUTS_PER_QUERY):
        chunk = unique_firsts[low : low + INPUTS_PER_QUERY]
        async with database.read() as connection:
            at = await _blocks_of(database, connection, shard.job_id, chunk)
            for spans in _read_plans(at, shard.width * 4):
                for block, data in await _read(database, connection, shard, spans):
                    rows = vectors.decode_blob(data, shard.width)
                    indexes = at[block]
                    outcomes.update((first, rows[first - indexes[0]]) for first in indexes)
            failures = await connection.execute(
                select(
                    JobInputError.index.label("at"), JobInputError.code, JobInputError.message, JobInputError.retryable
                ).where(
                    JobInputError.job_id == shard.job_id,
                    JobInputError.index.in_(select(database.integers_table(chunk).c.value)),
                )
            )
            outcomes.update((row.at, InputError(row.code, row.message, bool(row.retryable))) for row in failures)
            truncated |= await truncated_among(connection, shard.job_id, chunk)
    return outcomes, truncated


async def _blocks_of(
    database: Database, connection: AsyncConnection, job_id: str, indexes: Sequence[int]
) -> dict[int, list[int]]:
    """By first index of each vector block: those of the indexes that it contains."""
    numbers = database.integers_table(indexes)
    earlier = VectorBlock.__table__.alias("earlier")
    block = (
        select(func.max(earlier.c.first_index))
        .where(earlier.c.job_id == job_id, earlier.c.first_index <= numbers.c.value)
        .scalar_subquery()
    )
    rows = await connection.execute(
        select(numbers.c.value, VectorBlock.first_index)
        .join(VectorBlock, (VectorBlock.job_id == job_id) & (VectorBlock.first_index == block))
        .where(numbers.c.value < VectorBlock.first_index + VectorBlock.count)
        .order_by(numbers.c.value)
    )
    indexes_of: dict[int, list[int]] = {}
    for index, first in rows:
        indexes_of.setdefault(first, []).append(index)
    return indexes_of


def _read_plans(indexes_of: Mapping[int, Sequence[int]], row_bytes: int) -> Iterator[dict[int, tuple[int, int]]]:
    """What to read per query: by block, the first byte (counted from 1, as in SQL) and the number of bytes."""
    plan: dict[int, tuple[int, int]] = {}
    size = 0
    for block, indexes in indexes_of.items():
        span = ((indexes[0] - block) * row_bytes + 1, (indexes[-1] - indexes[0] + 1) * row_bytes)
        if plan and (size + span[1] > READ_BYTES or len(plan) == BLOCKS_PER_QUERY):
            yield plan
            plan, size = {}, 0
        plan[block] = span
        size += span[1]
    if plan:
        yield plan


async def _read(
    database: Database, connection: AsyncConnection, shard: ClaimedShard, spans: Mapping[int, tuple[int, int]]
) -> list[tuple[int, bytes]]:
    if (path := database.sqlite_path) is not None:
        return await asyncio.to_thread(_read_slices, path, shard.job_id, spans)
    start = case({block: span[0] for block, span in spans.items()}, value=VectorBlock.first_index)
    length = case({block: span[1] for block, span in spans.items()}, value=VectorBlock.first_index)
    rows = await connection.execute(
        select(VectorBlock.first_index, func.substr(VectorBlock.data, start, length, type_=Blob)).where(
            VectorBlock.job_id == shard.job_id, VectorBlock.first_index.in_(list(spans))
        )
    )
    return [(block, data) for block, data in rows]


def _read_slices(path: str, job_id: str, spans: Mapping[int, tuple[int, int]]) -> list[tuple[int, bytes]]:
    """Slices of blobs by incremental I/O: a tenth of the cost of SQLite's substr(), which reads the whole blob."""
    found: list[tuple[int, bytes]] = []
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
            for block, (start, length) in spans.items():
                row = connection.execute(
                    "select rowid from vectors where job_id = ? and first_index = ?", (job_id, block)
                ).fetchone()
                if row is None:  # deleted meanwhile
                    continue
                with connection.blobopen("vectors", "data", row[0], readonly=True) as blob:
                    blob.seek(start - 1)
                    found.append((block, blob.read(length)))
    except sqlite3.OperationalError as error:
        raise StorageUnavailable("the database does not answer", retry_after_s=2.0) from error
    return found
