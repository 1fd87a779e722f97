"""Composition: the steps of a process, made of its parts."""

from __future__ import annotations

from sqlalchemy import select

from engine.batches.corpus_ingest import ingest_corpus
from engine.batches.ingest import ingest_batch
from engine.batches.output import write_output
from engine.batches.steps import ClaimedStep, StepParts, end_step
from engine.batches.validate import validate_batch
from engine.batches.worker import StepWorker
from engine.files.composition import files_of
from engine.jobs.composition import dispatcher_of
from engine.runtime import Runtime
from models.batch import StepKind
from models.job import Job


def step_parts_of(runtime: Runtime) -> StepParts:
    """What the steps of a process share."""
    return StepParts(
        store=runtime.store,
        files=files_of(runtime),
        work=runtime.work,
        alias=runtime.alias,
        aliases=runtime.aliases,
        dispatcher=dispatcher_of(runtime),
        usage=runtime.usage,
    )


def step_worker_of(runtime: Runtime, name: str) -> StepWorker:
    """The loop of steps of a worker process. `name`: of the process, for its leases."""
    functions = {StepKind.VALIDATE: validate_batch, StepKind.INGEST: _ingest, StepKind.WRITE_OUTPUT: _end}
    return StepWorker(step_parts_of(runtime), name, runtime.draining, functions)


async def _ingest(parts: StepParts, step: ClaimedStep) -> None:
    await (ingest_batch if await _is_of_batch(parts, step) else ingest_corpus)(parts, step)


async def _end(parts: StepParts, step: ClaimedStep) -> None:
    """Write the output of a batch. A job without one needs nothing at its end."""
    if await _is_of_batch(parts, step):
        await write_output(parts, step)
        return
    async with parts.store.database.write() as connection:
        await end_step(connection, step)


async def _is_of_batch(parts: StepParts, step: ClaimedStep) -> bool:
    async with parts.store.database.read() as connection:
        found = await connection.execute(select(Job.batch_id).where(Job.id == step.job_id))
        return found.scalar_one_or_none() is not None
