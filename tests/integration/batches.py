"""Batches whose job has run, made row by row: the input file, variants, shards with outcomes, and the output step."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson
from sqlalchemy import insert, select, update

from engine.batches.composition import step_parts_of
from engine.batches.lines import BatchLine, parse_batch_line
from engine.batches.output import write_output
from engine.batches.steps import ClaimedStep, StepParts, claim_step
from engine.files.composition import files_of
from engine.files.read import read_file
from engine.files.write import store_file
from models.base import db_now, new_id
from models.batch import Batch, BatchStatus, JobStep, JobVariant, StepKind
from models.embedding import Input, Matrix
from models.job import Job, JobInputError, JobStatus, Shard, ShardInputs, ShardState, VectorBlock
from providers.fake import fake_tokens, fake_vectors
from tests.integration.store import SHARD_INPUTS, Store

PROJECT = "p"
TOKENS = 1_000_003  # billed: a prime, so that no division comes out even
WIDTHS = {"test/8": 8, "test/16": 16}


def request(custom_id: str, text: Any, model: str = "test/8", **fields: Any) -> bytes:
    """A line of an input file."""
    body = {"model": model, "input": text, **fields}
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body})


@dataclass
class Inputs:
    """The inputs of one variant, in the order of the file."""

    number: int
    line: BatchLine
    items: list[Input] = field(default_factory=list)
    first_index: int = 0
    error: dict[str, Any] | None = None

    @property
    def width(self) -> int:
        return self.line.dimensions or WIDTHS.get(self.line.model, 8)

    def vectors(self) -> Matrix:
        return vectors_of(self.items, self.line)


def vectors_of(items: Sequence[Input], line: BatchLine) -> Matrix:
    """The vectors of inputs of a line's variant, as this module stores them."""
    return fake_vectors(list(items), line.dimensions or WIDTHS.get(line.model, 8), line.model)


@dataclass
class RunBatch:
    """A batch whose job has ended."""

    store: Store
    id: str
    job_id: str
    variants: list[Inputs]

    def parts(self) -> StepParts:
        return step_parts(self.store)

    async def row(self) -> Any:
        async with self.store.database.read() as connection:
            return (await connection.execute(select(*Batch.__table__.columns).where(Batch.id == self.id))).one()

    async def claim(self, store: Store | None = None) -> ClaimedStep:
        step = await claim_step((store or self.store).jobs, "w")
        assert step is not None and step.job_id == self.job_id, "no step was due"
        return step

    async def write(self, **options: Any) -> Any:
        """Run the output step. Returns the batch's row."""
        await write_output(self.parts(), await self.claim(), **options)
        return await self.row()

    async def content(self, file_id: str | None) -> bytes:
        return (
            b""
            if file_id is None
            else b"".join([piece async for piece in read_file(files_of(self.store.runtime), file_id)])
        )

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in (await self.content(file_id)).splitlines()]


def step_parts(store: Store) -> StepParts:
    runtime = store.runtime
    return step_parts_of(runtime)


async def chunks_of(body: bytes) -> AsyncIterator[bytes]:
    for low in range(0, len(body), 1000):
        yield body[low : low + 1000]


async def run_batch(
    store: Store,
    body: bytes,
    *,
    status: JobStatus = JobStatus.COMPLETED,
    failures: Mapping[str, str] | None = None,
    not_run: Collection[str] = (),
    unknown_models: Collection[str] = (),
    duplicate_lines: Sequence[int] = (),
    default_model: str | None = None,
    is_validated: bool = True,
    tokens: int = TOKENS,
    **columns: Any,
) -> RunBatch:
    """A batch with this input file, as validation, ingest and workers leave it.

    `failures`: error codes by text; `not_run`: texts without an outcome; `columns`: of the row of the batch.
    """
    hex_id = new_id("x").removeprefix("x_")
    batch_id, job_id = f"batch_{hex_id}", f"job_{hex_id}"
    file = await store_file(
        files_of(store.runtime),
        project=PROJECT,
        key_id="key",
        purpose="batch",
        filename="in.jsonl",
        chunks=chunks_of(body),
        max_bytes=1 << 40,
        expires_after_s=None,
    )
    variants, total = _variants(body, default_model, unknown_models, duplicate_lines)
    batch = RunBatch(store, batch_id, job_id, list(variants.values()))
    failures, states = failures or {}, _States()
    async with store.database.write() as connection:
        await connection.execute(insert(Job).values(_job(job_id, batch_id, file.id, status)))
        for variant in batch.variants:
            await connection.execute(insert(JobVariant).values(_variant(job_id, variant)))
            if variant.items:
                await _insert_shards(connection, job_id, variant, failures, not_run, states)
        await connection.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(
                completed=states.completed,
                failed=states.failed,
                ingested=states.completed + states.failed + states.not_run,
                total=states.completed + states.failed + states.not_run,
                prompt_tokens=tokens if states.completed else 0,
            )
        )
        packed = zlib.compress(np.array(duplicate_lines, dtype="<i8").tobytes()) if duplicate_lines else None
        values = {
            "id": batch_id,
            "job_id": job_id,
            "project": PROJECT,
            "key_id": "key",
            "status": BatchStatus.IN_PROGRESS if is_validated else BatchStatus.VALIDATING,
            "completion_window": "24h",
            "input_file_id": file.id,
            "default_model": default_model,
            "total": total if is_validated else 0,
            "duplicate_lines": packed,
            "request_id": "req",
            "created_at": db_now() - 60,
            "in_progress_at": db_now() - 50 if is_validated else None,
            "expires_at": db_now() + 86400,
        }
        await connection.execute(insert(Batch).values(values | columns))
        await connection.execute(
            insert(JobStep).values(job_id=job_id, project=PROJECT, kind=StepKind.RUN, due_at=db_now() - 1)
        )
    return batch


@dataclass
class _States:
    completed: int = 0
    failed: int = 0
    not_run: int = 0


def _variants(
    body: bytes, default_model: str | None, unknown_models: Collection[str], duplicate_lines: Sequence[int]
) -> tuple[dict[bytes, Inputs], int]:
    variants: dict[bytes, Inputs] = {}
    total = 0
    for number, text in enumerate(body.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not text.strip():
            continue
        total += 1
        line = parse_batch_line(text, default_model)
        if not isinstance(line, BatchLine) or number in duplicate_lines:
            continue
        variant = variants.setdefault(line.options_key, Inputs(len(variants), line))
        if line.model in unknown_models:
            message = f"The provided model '{line.model}' is not supported by the Batch API."
            variant.error = {"code": "model_not_found", "message": message, "param": "body.model", "status": 404}
        else:
            variant.items += line.inputs
    first_index = 0
    for variant in variants.values():
        variant.first_index = first_index
        first_index += len(variant.items)
    return variants, total


def _job(job_id: str, batch_id: str, file_id: str, status: JobStatus) -> dict[str, Any]:
    return {
        "id": job_id,
        "project": PROJECT,
        "key_id": "key",
        "status": status,
        "alias": "",
        "space": "",
        "dimensions": 0,
        "options": {},
        "metadata_": {},
        "request_id": "req",
        "batch_id": batch_id,
        "input_file_id": file_id,
        "error_summary": [],
        "created_at": db_now() - 60,
        "started_at": db_now() - 40,
        "finished_at": db_now() - 5,
        "expires_at": db_now() + 86400,
    }


def _variant(job_id: str, variant: Inputs) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "number": variant.number,
        "key": variant.line.options_key,
        "alias": variant.line.model,
        "space": "s",
        "dimensions": variant.width,
        "options": {},
        "first_index": variant.first_index,
        "inputs": len(variant.items),
        "ingested": len(variant.items),
        "error": variant.error,
    }


async def _insert_shards(
    connection: Any,
    job_id: str,
    variant: Inputs,
    failures: Mapping[str, str],
    not_run: Collection[str],
    states: _States,
) -> None:
    vectors = variant.vectors()
    for low in range(0, len(variant.items), SHARD_INPUTS):
        items = variant.items[low : low + SHARD_INPUTS]
        shard_id = hashlib.blake2b(f"{job_id}/{variant.first_index + low}".encode(), digest_size=16).hexdigest()
        bits = np.array([item not in not_run for item in map(_hashable, items)])
        await connection.execute(
            insert(Shard).values(
                id=shard_id,
                job_id=job_id,
                first_index=variant.first_index + low,
                count=len(items),
                state=ShardState.DONE if bits.all() else ShardState.CANCELLED,
                variant=variant.number,
                tokens=sum(map(fake_tokens, items)),
                next_run_at=db_now(),
                outcome_bitmap=np.packbits(bits).tobytes(),
            )
        )
        await connection.execute(
            insert(ShardInputs).values(shard_id=shard_id, inputs=msgspec.msgpack.encode(items), ids=None)
        )
        for position, item in enumerate(items):
            index = variant.first_index + low + position
            code = failures.get(str(_hashable(item)))
            if code is not None:
                error = {"job_id": job_id, "index": index, "code": code, "message": f"it is {code}"}
                await connection.execute(insert(JobInputError).values(error))
                states.failed += 1
            elif bits[position]:
                data = vectors[low + position].tobytes()
                block = {"job_id": job_id, "first_index": index, "count": 1, "data": data}
                await connection.execute(insert(VectorBlock).values(block))
                states.completed += 1
            else:
                states.not_run += 1


def _hashable(item: Input) -> Any:
    return item if isinstance(item, str) else tuple(item)
