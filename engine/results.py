"""Formats out: vectors of a job as ndjson or npy, in index order, shard by shard, in flat memory, while it runs too."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson
import pybase64
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine import vectors
from engine.jobs.claim import settled_bits
from engine.jobs.halve import HALVES_FROM
from engine.runtime import Runtime
from models.embedding import Matrix
from models.job import FINISHED, InputFailure, Shard, ShardInputs, VectorRun

_IDS = msgspec.msgpack.Decoder(list[str | None])
ROWS_AT_ONCE = 64
SHARDS_AT_ONCE = 64
# What is handed to the socket at a time: the server copies what it could not send at once.
SEND_BYTES = 1024 * 1024
ERRORS_AT_ONCE = 2000
FAILURE = (InputFailure.index.label("at"), InputFailure.code, InputFailure.message, InputFailure.retryable)


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


async def npy(runtime: Runtime, job: Row[Any], wanted: Range) -> AsyncIterator[bytes | memoryview]:
    """float32 n x d in NumPy's own format; rows that have no vector (yet) are NaN."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (len(wanted), job.dimensions)}
    )
    yield header.getvalue()
    async for piece in _pieces(runtime, job, wanted, with_errors=False, with_ids=False):
        at = piece.first_index
        async for first, rows in _vectors(runtime, job, piece):
            if first > at:
                yield _nan_rows(first - at, job.dimensions)
            data = memoryview(rows).cast("B")  # type: ignore[arg-type]
            for low in range(0, len(data), SEND_BYTES):
                yield data[low : low + SEND_BYTES]
            at = first + len(rows)
        if piece.stop > at:
            yield _nan_rows(piece.stop - at, job.dimensions)


def npy_bytes(job: Row[Any], wanted: Range) -> int:
    """How long npy() will be."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (len(wanted), job.dimensions)}
    )
    return len(header.getvalue()) + len(wanted) * int(job.dimensions) * 4


async def ndjson(runtime: Runtime, job: Row[Any], wanted: Range, encoding: str) -> AsyncIterator[bytes]:
    """A line for each index that has an outcome: `{"index","id","embedding"}` or `{"index","id","error"}`."""
    line = _base64_line if encoding == "base64" else _float_line
    async for piece in _pieces(runtime, job, wanted, with_errors=True, with_ids=True):
        errors = sorted(piece.errors)
        lines: list[bytes] = []
        async for first, rows in _vectors(runtime, job, piece):
            while errors and errors[0] < first:
                lines.append(_error_line(piece, errors.pop(0)))
            for low in range(0, len(rows), ROWS_AT_ONCE):
                lines += _lines(piece, first + low, rows[low : low + ROWS_AT_ONCE], line)
                yield b"".join(lines)
                lines = []
                await asyncio.sleep(0)  # thousands of numbers were just written: let others have the loop
        lines += [_error_line(piece, index) for index in errors]
        if lines:
            yield b"".join(lines)


async def errors_ndjson(runtime: Runtime, job: Row[Any]) -> AsyncIterator[bytes]:
    """A line for each input that failed, in index order."""
    after = -1
    while True:
        async with runtime.database.read() as connection:
            rows = (
                await connection.execute(
                    select(*FAILURE)
                    .where(InputFailure.job_id == job.id, InputFailure.index > after)
                    .order_by(InputFailure.index)
                    .limit(ERRORS_AT_ONCE)
                )
            ).all()
            if not rows:
                return
            ids = await _ids_between(connection, job.id, rows[0].at, rows[-1].at + 1)
        yield b"".join(
            orjson.dumps(
                {
                    "index": row.at,
                    "id": ids(row.at),
                    "error": {"code": row.code, "message": row.message, "retryable": bool(row.retryable)},
                }
            )
            + b"\n"
            for row in rows
        )
        after = rows[-1].at


async def _shards(runtime: Runtime, job_id: str, wanted: Range) -> AsyncIterator[Any]:
    """The shards that the range touches, in order of their indexes, a page at a time."""
    if not len(wanted):
        return
    touched = (
        select(Shard.id, Shard.seq, Shard.first_index, Shard.count.label("size"), Shard.settled)
        .where(Shard.job_id == job_id, Shard.first_index < wanted.stop, Shard.first_index + Shard.count > wanted.start)
        .order_by(Shard.seq)
    )
    after, told = -1, 0
    while True:
        async with runtime.database.read() as connection:
            whole = touched.where(Shard.seq > after, Shard.seq < HALVES_FROM).limit(SHARDS_AT_ONCE)
            page = list(await connection.execute(whole))
            is_last = len(page) < SHARDS_AT_ONCE
            # Second halves, of which there are few, are numbered apart.
            halves = touched.where(Shard.seq >= HALVES_FROM, Shard.first_index >= told)
            if not is_last:
                halves = halves.where(Shard.first_index < page[-1].first_index)
            page += await connection.execute(halves)
        after = max((row.seq for row in page if row.seq < HALVES_FROM), default=after)
        for row in sorted(page, key=lambda row: row.first_index):
            if row.first_index >= told:  # else it was cut off what was read before as a whole
                yield row
                told = row.first_index + row.size
        if is_last:
            return


async def _pieces(
    runtime: Runtime, job: Row[Any], wanted: Range, *, with_errors: bool, with_ids: bool
) -> AsyncIterator[Piece]:
    async for shard in _shards(runtime, job.id, wanted):
        start = max(wanted.start, shard.first_index)
        stop = min(wanted.stop, shard.first_index + shard.size)
        async with runtime.database.read() as connection:
            runs = (
                await connection.execute(
                    select(VectorRun.first_index, VectorRun.count.label("size"))
                    .where(
                        VectorRun.job_id == job.id,
                        VectorRun.first_index >= shard.first_index,  # a run never leaves its shard
                        VectorRun.first_index < stop,
                        VectorRun.first_index + VectorRun.count > start,
                    )
                    .order_by(VectorRun.first_index)
                )
            ).all()
            failures = []
            if with_errors and (job.failed or job.status not in FINISHED):
                failures = list(
                    await connection.execute(
                        select(*FAILURE).where(
                            InputFailure.job_id == job.id, InputFailure.index >= start, InputFailure.index < stop
                        )
                    )
                )
            ids = None
            if with_ids:
                packed = (
                    await connection.execute(select(ShardInputs.ids).where(ShardInputs.shard_id == shard.id))
                ).scalar_one_or_none()
                ids = _IDS.decode(packed) if packed else None
        yield Piece(
            first_index=start,
            stop=stop,
            runs=[(run.first_index, run.size) for run in runs],
            errors={
                row.at: {"code": row.code, "message": row.message, "retryable": bool(row.retryable)} for row in failures
            },
            ids=ids,
            ids_from=shard.first_index,
        )


async def _vectors(runtime: Runtime, job: Row[Any], piece: Piece) -> AsyncIterator[tuple[int, Matrix]]:
    """The runs of a piece, cut to it: first index and rows."""
    for run_first, size in piece.runs:
        async with runtime.database.read() as connection:
            data = (
                await connection.execute(
                    select(VectorRun.data).where(VectorRun.job_id == job.id, VectorRun.first_index == run_first)
                )
            ).scalar_one_or_none()
        if data is None:  # deleted while it was read
            return
        low, high = max(piece.first_index - run_first, 0), min(piece.stop - run_first, size)
        yield run_first + low, vectors.from_blob(data, job.dimensions)[low:high]


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
    return [line(first + i, piece.caller_id(first + i), rows[i]) for i in range(len(rows))]


def _float_line(index: int, caller_id: str | None, row: Any) -> bytes:
    return orjson.dumps(
        {"index": index, "id": caller_id, "embedding": row},
        option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
    )


def _base64_line(index: int, caller_id: str | None, row: Any) -> bytes:
    return b'{"index":%d,"id":%b,"embedding":"%b"}\n' % (index, orjson.dumps(caller_id), pybase64.b64encode(row))


def _error_line(piece: Piece, index: int) -> bytes:
    return orjson.dumps({"index": index, "id": piece.caller_id(index), "error": piece.errors[index]}) + b"\n"


def _nan_rows(count: int, width: int) -> bytes:
    return np.full((count, width), np.nan, dtype="<f4").tobytes()


__all__ = ["Range", "errors_ndjson", "is_complete", "ndjson", "npy", "npy_bytes"]
