"""Twins: inputs that occurred before in their job. They get the outcome of the first, without a call of their own.

The first always has the lower index, so that shards which wait for each other's inputs cannot form a ring.
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
from engine.jobs.recording.truncated import among
from engine.runtime import Runtime
from engine.storage import vectors
from engine.storage.database import BUSY_TIMEOUT_S
from models.base import Blob
from models.embedding import BatchOutcome, InputError, Matrix
from models.errors import StorageUnavailable
from models.job import JobInputError, VectorBlock

Outcome = Matrix | InputError
"""One row, or the reason why there is none."""

ASKED_AT_ONCE = 1024
READ_BYTES = 8 * 1024 * 1024
RUNS_AT_ONCE = 64


class DuplicateFanout:
    """Puts copies of outcomes between the outcomes that land, for the twins of one claimed shard.

    A copy is handed on after its neighbour before it: what lands together becomes one row of the database, and a shard
    in which every other input is a twin must not become thousands of rows.
    """

    def __init__(self, held: ClaimedShard, landed: Callable[[BatchOutcome], None]) -> None:
        self._landed = landed
        own = [held.index(position) for position in held.waiting()]
        self._missing = {held.index(position): first for position, first in held.waiting_twins().items()}
        here = set(own)
        self._twins_of: dict[int, list[int]] = {}
        self._after: dict[int, list[int]] = {}
        self._loose: list[int] = []  # twins with no neighbour before them that is still to land
        for index, first in self._missing.items():
            if first in here:
                self._twins_of.setdefault(first, []).append(index)
            place = bisect_right(own, index)
            (self._after.setdefault(own[place - 1], []) if place else self._loose).append(index)
        self._known: dict[int, Outcome] = {}
        self._truncated: set[int] = set()  # twins whose first was not embedded whole

    def missing(self) -> dict[int, int]:
        """Twins whose outcome is not known yet: their index and that of their first."""
        return self._missing

    def know(self, outcomes: Mapping[int, Outcome], truncated: Set[int] = frozenset()) -> None:
        """Take the outcomes of firsts, and which of those were not embedded whole."""
        for index, first in list(self._missing.items()):
            if first in outcomes:
                if first in truncated:
                    self._truncated.add(index)
                self._known[index] = outcomes[first]
                del self._missing[index]

    def __call__(self, part: BatchOutcome) -> None:
        """Hand on what landed, with the copies that are next to it."""
        for row, index in enumerate(part.indexes):
            for twin in self._twins_of.pop(index, ()):
                outcome = part.error if part.vectors is None else part.vectors[row]
                if outcome is not None and self._missing.pop(twin, None) is not None:
                    self._known[twin] = outcome
                    if part.truncated and index in part.truncated:
                        self._truncated.add(twin)
            self._loose += self._after.pop(index, ())
        self._landed(part)
        self._hand_on([index for index in self._loose if index in self._known])
        self._loose = [index for index in self._loose if index in self._missing]

    def flush(self) -> None:
        """Hand on every copy that is known, wherever its neighbours are."""
        self._hand_on(sorted(self._known))

    def _hand_on(self, indexes: Sequence[int]) -> None:
        outcomes = [(index, self._known.pop(index)) for index in indexes]
        rows = [(index, outcome) for index, outcome in outcomes if not isinstance(outcome, InputError)]
        if rows:
            copied = [index for index, _ in rows]
            part = _copy(copied, np.stack([row for _, row in rows]), None)
            truncated = self._truncated.intersection(copied)
            self._landed(part._replace(truncated=sorted(truncated)) if truncated else part)
        for index, outcome in outcomes:
            if isinstance(outcome, InputError):
                self._landed(_copy([index], None, outcome))


def is_duplicate(part: BatchOutcome) -> bool:
    """True for vectors that no call was made for."""
    return part.route is None and part.error is None


def _copy(indexes: list[int], rows: Matrix | None, error: InputError | None) -> BatchOutcome:
    return BatchOutcome(indexes, rows, error, 0, False, Decimal(0), None)


async def settled(runtime: Runtime, held: ClaimedShard, firsts: Sequence[int]) -> tuple[dict[int, Outcome], set[int]]:
    """The outcomes of these inputs of the job, where they are in the database already, and which of them were cut.

    Raises StorageUnavailable.
    """
    outcomes: dict[int, Outcome] = {}
    cut: set[int] = set()
    wanted_firsts = sorted(set(firsts))
    for low in range(0, len(wanted_firsts), ASKED_AT_ONCE):
        some = wanted_firsts[low : low + ASKED_AT_ONCE]
        async with runtime.database.read() as connection:
            at = await _runs_of(runtime, connection, held.job_id, some)
            for spans in _portions(at, held.width * 4):
                for run, data in await _read(runtime, connection, held, spans):
                    rows = vectors.decode_blob(data, held.width)
                    wanted = at[run]
                    outcomes.update((first, rows[first - wanted[0]]) for first in wanted)
            failures = await connection.execute(
                select(
                    JobInputError.index.label("at"), JobInputError.code, JobInputError.message, JobInputError.retryable
                ).where(
                    JobInputError.job_id == held.job_id,
                    JobInputError.index.in_(select(runtime.database.integers_table(some).c.value)),
                )
            )
            outcomes.update((row.at, InputError(row.code, row.message, bool(row.retryable))) for row in failures)
            cut |= await among(connection, held.job_id, some)
    return outcomes, cut


async def _runs_of(
    runtime: Runtime, connection: AsyncConnection, job_id: str, indexes: Sequence[int]
) -> dict[int, list[int]]:
    """Which run of vectors holds which of the indexes: the run's first index, and those that it holds."""
    numbers = runtime.database.integers_table(indexes)
    earlier = VectorBlock.__table__.alias("earlier")
    run = (
        select(func.max(earlier.c.first_index))
        .where(earlier.c.job_id == job_id, earlier.c.first_index <= numbers.c.value)
        .scalar_subquery()
    )
    rows = await connection.execute(
        select(numbers.c.value, VectorBlock.first_index)
        .join(VectorBlock, (VectorBlock.job_id == job_id) & (VectorBlock.first_index == run))
        .where(numbers.c.value < VectorBlock.first_index + VectorBlock.count)
        .order_by(numbers.c.value)
    )
    held_by: dict[int, list[int]] = {}
    for index, first in rows:
        held_by.setdefault(first, []).append(index)
    return held_by


def _portions(held_by: Mapping[int, Sequence[int]], row_bytes: int) -> Iterator[dict[int, tuple[int, int]]]:
    """What to read at a time: by run, the first byte (from 1, as SQL counts) and how many."""
    portion: dict[int, tuple[int, int]] = {}
    size = 0
    for run, indexes in held_by.items():
        span = ((indexes[0] - run) * row_bytes + 1, (indexes[-1] - indexes[0] + 1) * row_bytes)
        if portion and (size + span[1] > READ_BYTES or len(portion) == RUNS_AT_ONCE):
            yield portion
            portion, size = {}, 0
        portion[run] = span
        size += span[1]
    if portion:
        yield portion


async def _read(
    runtime: Runtime, connection: AsyncConnection, held: ClaimedShard, spans: Mapping[int, tuple[int, int]]
) -> list[tuple[int, bytes]]:
    if (path := runtime.database.sqlite_path) is not None:
        return await asyncio.to_thread(_read_slices, path, held.job_id, spans)
    start = case({run: span[0] for run, span in spans.items()}, value=VectorBlock.first_index)
    length = case({run: span[1] for run, span in spans.items()}, value=VectorBlock.first_index)
    rows = await connection.execute(
        select(VectorBlock.first_index, func.substr(VectorBlock.data, start, length, type_=Blob)).where(
            VectorBlock.job_id == held.job_id, VectorBlock.first_index.in_(list(spans))
        )
    )
    return [(run, data) for run, data in rows]


def _read_slices(path: str, job_id: str, spans: Mapping[int, tuple[int, int]]) -> list[tuple[int, bytes]]:
    """What SQLite's substr() would give, at a tenth of its cost: that reads the whole blob, and this its slice."""
    found: list[tuple[int, bytes]] = []
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
            for run, (start, length) in spans.items():
                row = connection.execute(
                    "select rowid from vectors where job_id = ? and first_index = ?", (job_id, run)
                ).fetchone()
                if row is None:  # deleted meanwhile
                    continue
                with connection.blobopen("vectors", "data", row[0], readonly=True) as blob:
                    blob.seek(start - 1)
                    found.append((run, blob.read(length)))
    except sqlite3.OperationalError as error:
        raise StorageUnavailable("the database does not answer", retry_after_s=2.0) from error
    return found
