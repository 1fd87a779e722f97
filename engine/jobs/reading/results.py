"""Results: vectors of a job as ndjson or npy, in index order, shard by shard, in bounded memory, also while it runs.

The generators check that every index with an outcome yields one. Where rows were removed meanwhile (a purge, a retry)
they raise ResultsChanged, so that the connection is closed and no client takes a part for the whole.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
import orjson
import pybase64
from sqlalchemy import LargeBinary, Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.leasing.claim import decode_bitmap
from engine.jobs.recording import refused_inputs, truncated_inputs
from engine.runtime import Runtime
from engine.storage import vectors
from models.embedding import Matrix
from models.errors import ResultsChanged
from models.job import FINISHED, JobInputError, Shard, ShardInputs, VectorBlock

_IDS = msgspec.msgpack.Decoder(list[str | None])
SHARDS_PER_PAGE = 64
# Bytes that are read from the database and passed to the socket at a time. There may be many slow readers, and each
# holds so many bytes of vectors and of their text.
SLICE_BYTES = 512 * 1024
TEXT_BYTES_A_NUMBER = 12
ERRORS_PER_PAGE = 2000
# A retry may remove outcomes between two queries of a reader; the shard is then read again.
READ_TRIES = 3
_ERROR_COLUMNS = (JobInputError.index.label("at"), JobInputError.code, JobInputError.message, JobInputError.retryable)


@dataclass(frozen=True, slots=True)
class IndexRange:
    """Indexes start..stop (stop excluded) of a job, limited to the stored part of its corpus."""

    start: int
    stop: int

    @classmethod
    def of(cls, job: Row[Any], start: int | None, stop: int | None) -> IndexRange:
        end = min(job.ingested if stop is None else stop, job.ingested)
        first = min(start or 0, end)
        return cls(first, max(first, end))

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class ShardSlice:
    """The part of one shard that is in the range."""

    first_index: int
    stop: int
    blocks: list[tuple[int, int]]  # first index and size of vector blocks, which are megabytes and are read one by one
    errors: dict[int, dict[str, Any]]
    ids: list[str | None] | None
    ids_from: int
    truncated: Set[int] = frozenset()

    def caller_id(self, index: int) -> str | None:
        """The caller's id of an input."""
        return self.ids[index - self.ids_from] if self.ids else None


async def is_complete(runtime: Runtime, job: Row[Any], indexes: IndexRange, requested_stop: int | None) -> bool:
    """True when every index of the requested range has its outcome. Raises ResultsChanged."""
    if job.total is None and (requested_stop is None or requested_stop > job.ingested):
        return False
    if job.total is not None and job.completed + job.failed == job.total:
        return True
    async for shard in _shards(runtime, job.id, indexes):
        bits = decode_bitmap(shard.outcome_bitmap, shard.size)
        low = max(indexes.start - shard.first_index, 0)
        if not bits[low : indexes.stop - shard.first_index].all():
            return False
    return True


async def npy(
    runtime: Runtime, job: Row[Any], indexes: IndexRange, *, complete: bool = False
) -> AsyncIterator[bytes | memoryview]:
    """float32 n x d in NumPy's own format; rows that have no vector (yet) are NaN.

    `complete`: the reader was told that every index of the range has its outcome. Raises ResultsChanged.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (len(indexes), job.dimensions)}
    )
    yield header.getvalue()
    async for shard_slice in _shard_slices(runtime, job, indexes, complete=complete, with_ids=False):
        at = shard_slice.first_index
        async for first, rows in _vectors(runtime, job, shard_slice):
            if first > at:
                for nan_rows in _nan_rows(first - at, job.dimensions):
                    yield nan_rows
            yield memoryview(rows).cast("B")  # type: ignore[arg-type]
            at = first + len(rows)
        for nan_rows in _nan_rows(shard_slice.stop - at, job.dimensions):
            yield nan_rows


def npy_bytes(job: Row[Any], indexes: IndexRange) -> int:
    """Length of npy() in bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (len(indexes), job.dimensions)}
    )
    return len(header.getvalue()) + len(indexes) * int(job.dimensions) * 4


async def ndjson(
    runtime: Runtime, job: Row[Any], indexes: IndexRange, encoding: str, *, complete: bool = False
) -> AsyncIterator[bytes]:
    """A line for each index that has an outcome: `{"index","id","embedding"}` or `{"index","id","error"}`.

    `complete`: the reader was told that every index of the range has its outcome. Raises ResultsChanged.
    """
    line = _base64_line if encoding == "base64" else _float_line
    rows_at_once = max(1, SLICE_BYTES // (TEXT_BYTES_A_NUMBER * job.dimensions))
    async for shard_slice in _shard_slices(runtime, job, indexes, complete=complete, with_ids=True):
        errors = sorted(shard_slice.errors)
        lines: list[bytes] = []
        async for first, rows in _vectors(runtime, job, shard_slice):
            while errors and errors[0] < first:
                lines.append(_error_line(shard_slice, errors.pop(0)))
            for low in range(0, len(rows), rows_at_once):
                part = partial(_lines, shard_slice, first + low, rows[low : low + rows_at_once], line)
                # Formatting thousands of numbers would block the event loop, so a work thread does it.
                yield b"".join([*lines, *await runtime.work.run(job.project, part)])
                lines = []
        for low in range(0, len(errors), ERRORS_PER_PAGE):
            chunk = partial(_lines_of_errors, shard_slice, errors[low : low + ERRORS_PER_PAGE])
            yield b"".join([*lines, *await runtime.work.run(job.project, chunk)])
            lines = []
        if lines:
            yield b"".join(lines)


async def errors_ndjson(runtime: Runtime, job: Row[Any]) -> AsyncIterator[bytes]:
    """A line for each failed input, in index order. Raises ResultsChanged when some were removed meanwhile."""
    last_index, listed = -1, 0
    while True:
        async with runtime.database.read() as connection:
            page = await _failures_after(connection, job.id, last_index)
            if not page:
                break
            ids = await _ids_between(connection, job.id, page[0][0], page[-1][0] + 1)
        yield await runtime.work.run(job.project, partial(_error_lines, page, ids))
        last_index, listed = page[-1][0], listed + len(page)
    if listed < job.failed:
        raise ResultsChanged


async def _failures_after(
    connection: AsyncConnection, job_id: str, last_index: int
) -> list[tuple[int, dict[str, Any]]]:
    """The next failures after an index, in order: of processed inputs, and of those refused on arrival."""
    rows = (
        await connection.execute(
            select(*_ERROR_COLUMNS)
            .where(JobInputError.job_id == job_id, JobInputError.index > last_index)
            .order_by(JobInputError.index)
            .limit(ERRORS_PER_PAGE)
        )
    ).all()
    refused = await refused_inputs.next_after(connection, job_id, last_index, ERRORS_PER_PAGE)
    found = [
        (int(row.at), {"code": row.code, "message": row.message, "retryable": bool(row.retryable)}) for row in rows
    ]
    found += [(each.index, {"code": each.code, "message": each.message, "retryable": False}) for each in refused]
    return sorted(found, key=lambda each: each[0])[:ERRORS_PER_PAGE]


async def _shards(runtime: Runtime, job_id: str, indexes: IndexRange) -> AsyncIterator[Any]:
    """The shards that overlap the range, in the order of their indexes, in pages. Raises ResultsChanged.

    A range ends within the stored corpus, so shards cover all of it until they are removed.
    """
    columns = Shard.id, Shard.first_index, Shard.count.label("size"), Shard.outcome_bitmap
    next_index = indexes.start
    while next_index < indexes.stop:
        touched = (
            select(*columns)
            .where(Shard.job_id == job_id, Shard.first_index >= _shard_with(job_id, next_index))
            .where(Shard.first_index < indexes.stop)
            .order_by(Shard.first_index)
            .limit(SHARDS_PER_PAGE)
        )
        async with runtime.database.read() as connection:
            page = (await connection.execute(touched)).all()
        for row in page:
            if row.first_index > next_index:
                raise ResultsChanged
            yield row
            next_index = row.first_index + row.size
        if not page:
            raise ResultsChanged


def _shard_with(job_id: str, index: int) -> Any:
    """The first index of the shard that holds this one."""
    shards = Shard.__table__.alias("earlier")
    found = select(func.max(shards.c.first_index)).where(shards.c.job_id == job_id, shards.c.first_index <= index)
    return found.scalar_subquery()


async def _shard_slices(
    runtime: Runtime, job: Row[Any], indexes: IndexRange, *, complete: bool, with_ids: bool
) -> AsyncIterator[ShardSlice]:
    async for shard in _shards(runtime, job.id, indexes):
        for _ in range(READ_TRIES):
            shard_slice, outcomes = await _read_slice(runtime, job, indexes, shard, with_ids=with_ids)
            low, high = shard_slice.first_index - shard.first_index, shard_slice.stop - shard.first_index
            expected = high - low if complete else int(decode_bitmap(shard.outcome_bitmap, shard.size)[low:high].sum())
            if outcomes >= expected:
                break
            shard = await _read_shard(runtime, shard)
        else:
            raise ResultsChanged
        yield shard_slice


async def _read_shard(runtime: Runtime, shard: Any) -> Any:
    """The current row of the shard. Raises ResultsChanged when it was removed or split."""
    columns = Shard.id, Shard.first_index, Shard.count.label("size"), Shard.outcome_bitmap
    async with runtime.database.read() as connection:
        found = (await connection.execute(select(*columns).where(Shard.id == shard.id))).one_or_none()
    if found is None or found.size != shard.size:
        raise ResultsChanged
    return found


async def _read_slice(
    runtime: Runtime, job: Row[Any], indexes: IndexRange, shard: Any, *, with_ids: bool
) -> tuple[ShardSlice, int]:
    """The part of a shard that is in the range, and its number of outcomes. Raises ResultsChanged."""
    start = max(indexes.start, shard.first_index)
    stop = min(indexes.stop, shard.first_index + shard.size)
    async with runtime.database.read() as connection:
        blocks = (
            await connection.execute(
                select(VectorBlock.first_index, VectorBlock.count.label("size"))
                .where(
                    VectorBlock.job_id == job.id,
                    VectorBlock.first_index >= shard.first_index,  # a block never spans two shards
                    VectorBlock.first_index < stop,
                    VectorBlock.first_index + VectorBlock.count > start,
                )
                .order_by(VectorBlock.first_index)
            )
        ).all()
        failures = []
        refused: list[refused_inputs.Refusal] = []
        if job.failed or job.status not in FINISHED:
            failures = list(
                await connection.execute(
                    select(*_ERROR_COLUMNS).where(
                        JobInputError.job_id == job.id, JobInputError.index >= start, JobInputError.index < stop
                    )
                )
            )
            refused = await refused_inputs.between(connection, job.id, start, stop)
        truncated: Set[int] = frozenset()
        if with_ids and (job.truncated or job.status not in FINISHED):
            truncated = await truncated_inputs.between(connection, job.id, start, stop)
        ids = None
        if with_ids:
            stored = (await connection.execute(select(ShardInputs.ids).where(ShardInputs.shard_id == shard.id))).all()
            if not stored:
                raise ResultsChanged
            ids = _IDS.decode(stored[0].ids) if stored[0].ids else None
    shard_slice = ShardSlice(
        first_index=start,
        stop=stop,
        blocks=[(block.first_index, block.size) for block in blocks],
        errors={
            row.at: {"code": row.code, "message": row.message, "retryable": bool(row.retryable)} for row in failures
        }
        | {each.index: {"code": each.code, "message": each.message, "retryable": False} for each in refused},
        ids=ids,
        ids_from=shard.first_index,
        truncated=truncated,
    )
    vectors_here = sum(min(first + size, stop) - max(first, start) for first, size in shard_slice.blocks)
    return shard_slice, vectors_here + len(shard_slice.errors)


async def _vectors(runtime: Runtime, job: Row[Any], shard_slice: ShardSlice) -> AsyncIterator[tuple[int, Matrix]]:
    """The vectors of a slice: first index and rows, shape (n, dimensions). Raises ResultsChanged."""
    row_bytes = 4 * job.dimensions
    rows_at_once = max(1, SLICE_BYTES // row_bytes)
    for block_first, size in shard_slice.blocks:
        stop = min(shard_slice.stop - block_first, size)
        for low in range(max(shard_slice.first_index - block_first, 0), stop, rows_at_once):
            count = min(rows_at_once, stop - low)
            part = func.substr(VectorBlock.data, low * row_bytes + 1, count * row_bytes, type_=LargeBinary)
            async with runtime.database.read() as connection:
                data = (
                    await connection.execute(
                        select(part).where(VectorBlock.job_id == job.id, VectorBlock.first_index == block_first)
                    )
                ).scalar_one_or_none()
            if data is None or len(data) != count * row_bytes:  # removed or written again meanwhile
                raise ResultsChanged
            yield block_first + low, vectors.decode_blob(data, job.dimensions)


async def _ids_between(connection: AsyncConnection, job_id: str, start: int, stop: int) -> Callable[[int], str | None]:
    rows = (
        await connection.execute(
            select(Shard.first_index, Shard.count.label("size"), ShardInputs.ids)
            .join(ShardInputs, ShardInputs.shard_id == Shard.id)
            .where(
                Shard.job_id == job_id,
                Shard.first_index < stop,
                Shard.first_index + Shard.count > start,
                ShardInputs.ids.is_not(None),
            )
        )
    ).all()
    pages: list[tuple[int, int, list[str | None]]] = [(row.first_index, row.size, _IDS.decode(row.ids)) for row in rows]

    def caller_id(index: int) -> str | None:
        for first, count, ids in pages:
            if first <= index < first + count:
                return ids[index - first]
        return None

    return caller_id


def _lines(
    shard_slice: ShardSlice, first: int, rows: Any, line: Callable[[int, str | None, Any], bytes]
) -> list[bytes]:
    lines = [line(first + i, shard_slice.caller_id(first + i), rows[i]) for i in range(len(rows))]
    if shard_slice.truncated:
        for i in range(len(rows)):
            if first + i in shard_slice.truncated:
                lines[i] = lines[i][:-2] + b',"truncated":true}\n'
    return lines


def _float_line(index: int, caller_id: str | None, row: Any) -> bytes:
    return orjson.dumps(
        {"index": index, "id": caller_id, "embedding": row},
        option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
    )


def _base64_line(index: int, caller_id: str | None, row: Any) -> bytes:
    return b'{"index":%d,"id":%b,"embedding":"%b"}\n' % (index, orjson.dumps(caller_id), pybase64.b64encode(row))


def _error_lines(page: list[tuple[int, dict[str, Any]]], ids: Callable[[int], str | None]) -> bytes:
    return b"".join(orjson.dumps({"index": index, "id": ids(index), "error": error}) + b"\n" for index, error in page)


def _lines_of_errors(shard_slice: ShardSlice, indexes: Sequence[int]) -> list[bytes]:
    return [_error_line(shard_slice, index) for index in indexes]


def _error_line(shard_slice: ShardSlice, index: int) -> bytes:
    return (
        orjson.dumps({"index": index, "id": shard_slice.caller_id(index), "error": shard_slice.errors[index]}) + b"\n"
    )


def _nan_rows(count: int, width: int) -> Iterator[bytes]:
    rows_at_once = max(1, SLICE_BYTES // (4 * width))
    for low in range(0, count, rows_at_once):
        yield np.full((min(rows_at_once, count - low), width), np.nan, dtype="<f4").tobytes()


__all__ = ["IndexRange", "errors_ndjson", "is_complete", "ndjson", "npy", "npy_bytes"]
