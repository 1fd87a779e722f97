"""Formats out: vectors of a job as ndjson or npy, in index order, shard by shard, in flat memory, while it runs too.

What a reader has been promised is checked while it is sent: every index that had an outcome brings one. Where rows have
gone meanwhile (a purge, a retry), the generators raise ResultsChanged, so that the connection breaks off and no client
takes a part for the whole.
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

from engine.jobs.leasing.claim import settled_bits
from engine.jobs.recording import refused_ranges, truncated
from engine.jobs.recording.split_shard import HALVES_FROM
from engine.runtime import Runtime
from engine.storage import vectors
from models.embedding import Matrix
from models.errors import ResultsChanged
from models.job import FINISHED, JobInputError, Shard, ShardInputs, VectorBlock

_IDS = msgspec.msgpack.Decoder(list[str | None])
SHARDS_AT_ONCE = 64
# What is read from the database and handed to the socket at a time. A reader may be as slow as it likes for half a
# minute, and there may be many of them: so much of the vectors, and as much of their text, is held for each.
SLICE_BYTES = 512 * 1024
TEXT_BYTES_A_NUMBER = 12
ERRORS_AT_ONCE = 2000
# A retry may clear outcomes between two statements of a reader: then the same shard is read again.
READ_TRIES = 3
FAILURE = (JobInputError.index.label("at"), JobInputError.code, JobInputError.message, JobInputError.retryable)


@dataclass(frozen=True, slots=True)
class Range:
    """Indexes start..stop (stop excluded) of a job, cut to what has been read of its corpus."""

    start: int
    stop: int

    @classmethod
    def of(cls, job: Row[Any], start: int | None, stop: int | None) -> Range:
        end = min(job.ingested if stop is None else stop, job.ingested)
        first = min(start or 0, end)
        return cls(first, max(first, end))

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class Piece:
    """What is known of one shard's part of the range."""

    first_index: int
    stop: int
    runs: list[tuple[int, int]]  # first index, size; their vectors are megabytes and are read one by one
    errors: dict[int, dict[str, Any]]
    ids: list[str | None] | None
    ids_from: int
    truncated: Set[int] = frozenset()

    def caller_id(self, index: int) -> str | None:
        return self.ids[index - self.ids_from] if self.ids else None


async def is_complete(runtime: Runtime, job: Row[Any], wanted: Range, asked_stop: int | None) -> bool:
    """True when every index of the range that was asked for has its outcome."""
    if job.total is None and (asked_stop is None or asked_stop > job.ingested):
        return False
    if job.total is not None and job.completed + job.failed == job.total:
        return True
    async for shard in _shards(runtime, job.id, wanted):
        bits = settled_bits(shard.settled, shard.size)
        low = max(wanted.start - shard.first_index, 0)
        if not bits[low : wanted.stop - shard.first_index].all():
            return False
    return True


async def npy(
    runtime: Runtime, job: Row[Any], wanted: Range, *, complete: bool = False
) -> AsyncIterator[bytes | memoryview]:
    """float32 n x d in NumPy's own format; rows that have no vector (yet) are NaN.

    `complete`: the reader was told that every index of the range has its outcome. Raises ResultsChanged.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (len(wanted), job.dimensions)}
    )
    yield header.getvalue()
    async for piece in _pieces(runtime, job, wanted, complete=complete, with_ids=False):
        at = piece.first_index
        async for first, rows in _vectors(runtime, job, piece):
            if first > at:
                for slice_ in _nan_rows(first - at, job.dimensions):
                    yield slice_
            yield memoryview(rows).cast("B")  # type: ignore[arg-type]
            at = first + len(rows)
        for slice_ in _nan_rows(piece.stop - at, job.dimensions):
            yield slice_


def npy_bytes(job: Row[Any], wanted: Range) -> int:
    """How long npy() will be."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (len(wanted), job.dimensions)}
    )
    return len(header.getvalue()) + len(wanted) * int(job.dimensions) * 4


async def ndjson(
    runtime: Runtime, job: Row[Any], wanted: Range, encoding: str, *, complete: bool = False
) -> AsyncIterator[bytes]:
    """A line for each index that has an outcome: `{"index","id","embedding"}` or `{"index","id","error"}`.

    `complete`: the reader was told that every index of the range has its outcome. Raises ResultsChanged.
    """
    line = _base64_line if encoding == "base64" else _float_line
    rows_at_once = max(1, SLICE_BYTES // (TEXT_BYTES_A_NUMBER * job.dimensions))
    async for piece in _pieces(runtime, job, wanted, complete=complete, with_ids=True):
        errors = sorted(piece.errors)
        lines: list[bytes] = []
        async for first, rows in _vectors(runtime, job, piece):
            while errors and errors[0] < first:
                lines.append(_error_line(piece, errors.pop(0)))
            for low in range(0, len(rows), rows_at_once):
                part = partial(_lines, piece, first + low, rows[low : low + rows_at_once], line)
                # Thousands of numbers: beside the loop, where other tenants' calls are.
                yield b"".join([*lines, *await runtime.work.run(job.project, part)])
                lines = []
        for low in range(0, len(errors), ERRORS_AT_ONCE):
            some = partial(_lines_of_errors, piece, errors[low : low + ERRORS_AT_ONCE])
            yield b"".join([*lines, *await runtime.work.run(job.project, some)])
            lines = []
        if lines:
            yield b"".join(lines)


async def errors_ndjson(runtime: Runtime, job: Row[Any]) -> AsyncIterator[bytes]:
    """A line for each input that failed, in index order. Raises ResultsChanged when some of them went meanwhile."""
    after, listed = -1, 0
    while True:
        async with runtime.database.read() as connection:
            page = await _failures_after(connection, job.id, after)
            if not page:
                break
            ids = await _ids_between(connection, job.id, page[0][0], page[-1][0] + 1)
        yield await runtime.work.run(job.project, partial(_error_lines, page, ids))
        after, listed = page[-1][0], listed + len(page)
    if listed < job.failed:
        raise ResultsChanged


async def _failures_after(connection: AsyncConnection, job_id: str, after: int) -> list[tuple[int, dict[str, Any]]]:
    """The next failures behind an index, in order: of inputs that were tried, and of those refused as they arrived."""
    rows = (
        await connection.execute(
            select(*FAILURE)
            .where(JobInputError.job_id == job_id, JobInputError.index > after)
            .order_by(JobInputError.index)
            .limit(ERRORS_AT_ONCE)
        )
    ).all()
    refused = await refused_ranges.following(connection, job_id, after, ERRORS_AT_ONCE)
    found = [
        (int(row.at), {"code": row.code, "message": row.message, "retryable": bool(row.retryable)}) for row in rows
    ]
    found += [(each.index, {"code": each.code, "message": each.message, "retryable": False}) for each in refused]
    return sorted(found, key=lambda each: each[0])[:ERRORS_AT_ONCE]


async def _shards(runtime: Runtime, job_id: str, wanted: Range) -> AsyncIterator[Any]:
    """The shards that the range touches, in order of their indexes, a page at a time. Raises ResultsChanged.

    A range ends where the corpus did when it was read, so shards cover all of it, until somebody removes them.
    """
    if not len(wanted):
        return
    touched = (
        select(Shard.id, Shard.seq, Shard.first_index, Shard.count.label("size"), Shard.settled)
        .where(Shard.job_id == job_id, Shard.first_index < wanted.stop, Shard.first_index + Shard.count > wanted.start)
        .order_by(Shard.seq)
    )
    after, told = -1, wanted.start
    while True:
        async with runtime.database.read() as connection:
            whole = touched.where(Shard.seq > after, Shard.seq < HALVES_FROM).limit(SHARDS_AT_ONCE)
            page = list(await connection.execute(whole))
            is_last = len(page) < SHARDS_AT_ONCE
            # Second halves, of which there are few, are numbered apart.
            halves = touched.where(Shard.seq >= HALVES_FROM, Shard.first_index + Shard.count > told)
            if not is_last:
                halves = halves.where(Shard.first_index < page[-1].first_index)
            page += await connection.execute(halves)
        after = max((row.seq for row in page if row.seq < HALVES_FROM), default=after)
        for row in sorted(page, key=lambda row: row.first_index):
            if row.first_index > told:
                raise ResultsChanged
            if row.first_index + row.size > told:  # else it was cut off what was read before as a whole
                yield row
                told = row.first_index + row.size
        if is_last:
            break
    if told < wanted.stop:
        raise ResultsChanged


async def _pieces(
    runtime: Runtime, job: Row[Any], wanted: Range, *, complete: bool, with_ids: bool
) -> AsyncIterator[Piece]:
    async for shard in _shards(runtime, job.id, wanted):
        for _ in range(READ_TRIES):
            piece, outcomes = await _read_piece(runtime, job, wanted, shard, with_ids=with_ids)
            low, high = piece.first_index - shard.first_index, piece.stop - shard.first_index
            expected = high - low if complete else int(settled_bits(shard.settled, shard.size)[low:high].sum())
            if outcomes >= expected:
                break
            shard = await _read_shard(runtime, shard)
        else:
            raise ResultsChanged
        yield piece


async def _read_shard(runtime: Runtime, shard: Any) -> Any:
    """The shard as it is now. Raises ResultsChanged when it is gone, or has been cut in two since."""
    columns = Shard.id, Shard.seq, Shard.first_index, Shard.count.label("size"), Shard.settled
    async with runtime.database.read() as connection:
        found = (await connection.execute(select(*columns).where(Shard.id == shard.id))).one_or_none()
    if found is None or found.size != shard.size:
        raise ResultsChanged
    return found


async def _read_piece(
    runtime: Runtime, job: Row[Any], wanted: Range, shard: Any, *, with_ids: bool
) -> tuple[Piece, int]:
    """What the database holds of a shard's part of the range, and how many outcomes that is."""
    start = max(wanted.start, shard.first_index)
    stop = min(wanted.stop, shard.first_index + shard.size)
    async with runtime.database.read() as connection:
        runs = (
            await connection.execute(
                select(VectorBlock.first_index, VectorBlock.count.label("size"))
                .where(
                    VectorBlock.job_id == job.id,
                    VectorBlock.first_index >= shard.first_index,  # a run never leaves its shard
                    VectorBlock.first_index < stop,
                    VectorBlock.first_index + VectorBlock.count > start,
                )
                .order_by(VectorBlock.first_index)
            )
        ).all()
        failures = []
        refused: list[refused_ranges.Refusal] = []
        if job.failed or job.status not in FINISHED:
            failures = list(
                await connection.execute(
                    select(*FAILURE).where(
                        JobInputError.job_id == job.id, JobInputError.index >= start, JobInputError.index < stop
                    )
                )
            )
            refused = await refused_ranges.between(connection, job.id, start, stop)
        cut: Set[int] = frozenset()
        if with_ids and (job.truncated or job.status not in FINISHED):
            cut = await truncated.between(connection, job.id, start, stop)
        ids = None
        if with_ids:
            stored = (await connection.execute(select(ShardInputs.ids).where(ShardInputs.shard_id == shard.id))).all()
            if not stored:
                raise ResultsChanged
            ids = _IDS.decode(stored[0].ids) if stored[0].ids else None
    piece = Piece(
        first_index=start,
        stop=stop,
        runs=[(run.first_index, run.size) for run in runs],
        errors={
            row.at: {"code": row.code, "message": row.message, "retryable": bool(row.retryable)} for row in failures
        }
        | {each.index: {"code": each.code, "message": each.message, "retryable": False} for each in refused},
        ids=ids,
        ids_from=shard.first_index,
        truncated=cut,
    )
    vectors_here = sum(min(first + size, stop) - max(first, start) for first, size in piece.runs)
    return piece, vectors_here + len(piece.errors)


async def _vectors(runtime: Runtime, job: Row[Any], piece: Piece) -> AsyncIterator[tuple[int, Matrix]]:
    """The runs of a piece, cut to it: first index and rows. Raises ResultsChanged."""
    row_bytes = 4 * job.dimensions
    rows_at_once = max(1, SLICE_BYTES // row_bytes)
    for run_first, size in piece.runs:
        stop = min(piece.stop - run_first, size)
        for low in range(max(piece.first_index - run_first, 0), stop, rows_at_once):
            count = min(rows_at_once, stop - low)
            part = func.substr(VectorBlock.data, low * row_bytes + 1, count * row_bytes, type_=LargeBinary)
            async with runtime.database.read() as connection:
                data = (
                    await connection.execute(
                        select(part).where(VectorBlock.job_id == job.id, VectorBlock.first_index == run_first)
                    )
                ).scalar_one_or_none()
            if data is None or len(data) != count * row_bytes:  # removed, or written anew, while it was read
                raise ResultsChanged
            yield run_first + low, vectors.decode_blob(data, job.dimensions)


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


def _lines(piece: Piece, first: int, rows: Any, line: Callable[[int, str | None, Any], bytes]) -> list[bytes]:
    lines = [line(first + i, piece.caller_id(first + i), rows[i]) for i in range(len(rows))]
    if piece.truncated:
        for i in range(len(rows)):
            if first + i in piece.truncated:
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


def _lines_of_errors(piece: Piece, indexes: Sequence[int]) -> list[bytes]:
    return [_error_line(piece, index) for index in indexes]


def _error_line(piece: Piece, index: int) -> bytes:
    return orjson.dumps({"index": index, "id": piece.caller_id(index), "error": piece.errors[index]}) + b"\n"


def _nan_rows(count: int, width: int) -> Iterator[bytes]:
    rows_at_once = max(1, SLICE_BYTES // (4 * width))
    for low in range(0, count, rows_at_once):
        yield np.full((min(rows_at_once, count - low), width), np.nan, dtype="<f4").tobytes()


__all__ = ["Range", "errors_ndjson", "is_complete", "ndjson", "npy", "npy_bytes"]
