"""The step INGEST: the inputs of a batch's file become the shards of its job."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.batches.lines import LineFault, parse_batch_line
from engine.batches.reader import FileLine, LineIterator
from engine.batches.steps import ClaimedStep, StepParts, StepStopped, lock_step, move_step, store_progress
from engine.corpus.lines import ParsedRecords
from engine.files.read import read_file
from engine.jobs.ingest.file_intake import FileIntake, IntakeTarget, TargetDraft
from engine.jobs.ingest.sharding import JobSpec, Prefix
from engine.jobs.leasing.claim import options_of
from models.batch import Batch, JobVariant, StepKind


async def ingest_batch(parts: StepParts, step: ClaimedStep) -> None:
    """Store the inputs of the batch's lines as shards, each at its variant's next index.

    Raises StepStopped; FileChanged, RequestError: the batch cannot run; and what leaves the step to another attempt.
    """
    async with parts.store.database.read() as connection:
        batch = (
            await connection.execute(select(*Batch.__table__.columns).where(Batch.job_id == step.job_id))
        ).one_or_none()
        variants = (
            await connection.execute(select(*JobVariant.__table__.columns).where(JobVariant.job_id == step.job_id))
        ).all()
    if batch is None:
        raise StepStopped("the batch was removed")

    async def guard(connection: AsyncConnection) -> None:
        await lock_step(connection, step)
        await store_progress(connection, step, step.progress or {})

    intake = FileIntake(
        parts.store,
        parts.dispatcher,
        parts.work,
        job_id=step.job_id,
        project=step.project,
        targets={row.number: _target(parts, batch, row) for row in variants if row.error is None},
        guard=guard,
    )
    inputs = _LineInputs(batch, variants)

    def drafts_of(lines: list[FileLine]) -> list[TargetDraft]:
        return intake.feed(inputs.records_of(lines))

    chunks = read_file(parts.files, batch.input_file_id)
    lines = LineIterator(parts.work, step.project, chunks, max_line_bytes=parts.store.settings.max_line_bytes)
    async with aclosing(chunks), aclosing(lines.map(drafts_of)) as steps:  # type: ignore[type-var]
        async for drafts in steps:
            step.check()
            await intake.write(drafts)

    async def at_end(connection: AsyncConnection) -> None:
        await move_step(connection, step, StepKind.RUN)

    await intake.finish(at_end)


def _target(parts: StepParts, batch: Row[Any], variant: Row[Any]) -> IntakeTarget:
    spec = JobSpec(
        alias=parts.alias(variant.alias),
        width=variant.dimensions,
        options=options_of(variant.options),
        metadata={},
        request_id=batch.request_id,
    )
    stored = None
    if variant.ingested:
        stored = Prefix(variant.ingested, bytes(variant.upload_hash), variant.refused)
    return IntakeTarget(spec, variant.number, variant.first_index, stored, variant.inputs)


class _LineInputs:
    """The inputs of the lines that run, by variant: all but those that the validation has refused."""

    def __init__(self, batch: Row[Any], variants: Sequence[Row[Any]]) -> None:
        self._default_model = batch.default_model
        self._numbers = {bytes(row.key): row.number for row in variants if row.error is None}
        packed = b"" if batch.duplicate_lines is None else zlib.decompress(batch.duplicate_lines)
        self._repeated = np.frombuffer(packed, dtype="<i8")  # lines with the custom_id of an earlier one, in order

    def records_of(self, lines: list[FileLine]) -> list[tuple[int, ParsedRecords]]:
        """The inputs of neighbouring lines, each with the custom_id of its line."""
        records: dict[int, ParsedRecords] = {}
        repeated: set[int] = set()
        if len(self._repeated) and lines:
            low, high = np.searchsorted(self._repeated, [lines[0].number, lines[-1].number + 1])
            repeated = set(self._repeated[low:high].tolist())
        for line in lines:
            if line.data is None or line.number in repeated:
                continue
            request = parse_batch_line(line.data, self._default_model)
            if isinstance(request, LineFault):
                continue
            number = self._numbers.get(request.options_key)
            if number is None:
                continue
            found = records.get(number)
            if found is None:
                found = records[number] = ParsedRecords()
            for item in request.inputs:
                found.add(item, request.custom_id)
        return list(records.items())
