"""The step INGEST of a native job: the texts of the file that it names become its shards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.batches.steps import ClaimedStep, StepParts, end_step, lock_step, store_progress
from engine.corpus.lines import ByteLimit, ParsedRecords
from engine.files.corpus_file import CorpusFile, open_corpus_file
from engine.jobs.ingest.file_intake import FileIntake, IntakeTarget, TargetDraft
from engine.jobs.ingest.sharding import JobSpec, Prefix
from engine.jobs.leasing.claim import options_of
from models.errors import InvalidInput
from models.job import Job

_TARGET = 0


async def ingest_corpus(parts: StepParts, step: ClaimedStep) -> None:
    """Store the texts of the job's file as shards. The step's progress names its columns.

    Raises StepStopped; RequestError, FileChanged: the job cannot run; and what leaves the step to another attempt.
    """
    async with parts.store.database.read() as connection:
        job = (await connection.execute(select(*Job.__table__.columns).where(Job.id == step.job_id))).one()
    columns = step.progress or {}
    file = await open_corpus_file(
        parts.files,
        job.input_file_id,
        text_column=columns.get("text_column"),
        id_column=columns.get("id_column"),
    )

    async def guard(connection: AsyncConnection) -> None:
        await lock_step(connection, step)
        await store_progress(connection, step, columns)

    stored = None
    if job.ingested:
        stored = Prefix(job.ingested, bytes(job.upload_hash), job.upload_refused_inputs)
    spec = JobSpec(
        alias=parts.alias(job.alias),
        width=job.dimensions,
        options=options_of(job.options),
        metadata={},
        request_id=job.request_id,
    )
    intake = FileIntake(
        parts.store,
        parts.dispatcher,
        parts.work,
        job_id=step.job_id,
        project=step.project,
        targets={_TARGET: IntakeTarget(spec, stored=stored)},
        guard=guard,
    )
    async with aclosing(_drafts(parts, step, file, intake)) as pieces:
        async for drafts in pieces:
            step.check()
            await intake.write(drafts)

    async def at_end(connection: AsyncConnection) -> None:
        if not intake.accepted:
            raise InvalidInput(
                f"The file has no usable input{intake.first_error and f': {intake.first_error}'}. "
                "Correct it, and send it again.",
                param="input_file_id",
                code="no_usable_input",
            )
        await end_step(connection, step)

    await intake.finish(at_end)


async def _drafts(
    parts: StepParts, step: ClaimedStep, file: CorpusFile, intake: FileIntake
) -> AsyncGenerator[list[TargetDraft]]:
    """The shards of the file, unpacked, parsed and grouped in the work threads."""
    meter = ByteLimit(parts.store.settings.max_job_bytes)

    def steps(records: Iterator[ParsedRecords]) -> Iterator[list[TargetDraft]]:
        for lines in records:
            yield intake.feed([(_TARGET, lines)])

    async for chunk in file.chunks:
        async for drafts in parts.work.drive(step.project, steps(file.parse(chunk, meter))):
            yield drafts
    async for drafts in parts.work.drive(step.project, steps(file.finish(meter))):
        yield drafts
