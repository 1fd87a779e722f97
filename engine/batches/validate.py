"""The step VALIDATE: reads the input file of a batch once, and starts the batch or fails it."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.batches.custom_ids import Numbers
from engine.batches.line_checks import (
    MAX_COMPARED_LINES,
    MAX_LISTED_ERRORS,
    MAX_VARIANTS,
    LineChecks,
    LineErrors,
    RepeatedIds,
    errors_as_json,
)
from engine.batches.lines import LineFault
from engine.batches.reader import LineIterator
from engine.batches.steps import ClaimedStep, StepParts, StepStopped, end_step, lock_step, move_step
from engine.batches.variants import choose_variant, job_columns, variant_rows
from engine.files.read import get_file, read_file
from engine.jobs.recording.completion import end_columns
from engine.observability import failpoints
from engine.webhooks.outbox import record_event
from models.base import db_now
from models.batch import Batch, BatchStatus, JobVariant, StepKind
from models.file import FilePurpose
from models.file_errors import FileNotFound
from models.job import Job, JobStatus
from models.webhook import EventType

log = logging.getLogger("embedmill.batches")
Errors = Sequence[tuple[int | None, LineFault]]


async def validate_batch(parts: StepParts, step: ClaimedStep) -> None:
    """Validate the batch: it is in progress afterwards, or failed with its errors.

    Raises StepStopped; and what leaves the step to another attempt: StorageUnavailable, ObjectsUnavailable.
    """
    async with parts.store.database.read() as connection:
        batch = (
            await connection.execute(select(*Batch.__table__.columns).where(Batch.job_id == step.job_id))
        ).one_or_none()
    if batch is None:
        raise StepStopped("the batch was removed")
    fault = await _fault_of_file(parts, batch)
    if fault is not None:
        await _fail(parts, step, batch, [(None, fault)], 1)
        return
    checks = LineChecks(
        lambda line: choose_variant(parts, line),
        default_model=batch.default_model,
        max_line_bytes=parts.store.settings.max_line_bytes,
    )
    async with aclosing(_lines(parts, batch).map(checks.read)) as lines:
        async for _ in lines:
            step.check()
            failpoints.hit("during_validation")
            if (fault := _fault_of_size(parts, checks)) is not None:
                # What is kept of each line would grow with the file.
                await _fail(parts, step, batch, [(None, fault)], 1)
                return
    duplicate_lines, repeated = await _find_repeated_ids(parts, step, batch, checks)
    if not checks.total:
        await _fail(parts, step, batch, [(None, _EMPTY)], 1)
        return
    general = _faults_of_all(parts, checks)
    if batch.is_lenient and duplicate_lines is not None and len(duplicate_lines) < repeated.count:
        general.append(_TOO_MANY_REPEATED)
    count = len(general)
    errors: list[tuple[int | None, LineFault]] = [(None, each) for each in general]
    if not batch.is_lenient:
        count += checks.errors.count + repeated.count
        errors += checks.errors.merged(repeated)
    if count:
        await _fail(parts, step, batch, errors[:MAX_LISTED_ERRORS], count)
    else:
        await _start(parts, step, batch, checks, duplicate_lines)


_TOO_MANY_REPEATED = LineFault(
    "too_many_duplicate_custom_ids",
    f"More than {MAX_COMPARED_LINES} lines have a custom_id that another line has. Give each request an id of its own.",
    "custom_id",
)
_EMPTY = LineFault("empty_file", "The input file is empty. Upload a file with one request on each line.", None)


async def _fault_of_file(parts: StepParts, batch: Row[Any]) -> LineFault | None:
    """Why the input file cannot be read. A file that was deleted since is as one that never was, unless it was made
    with the batch: nobody has named it, so nothing of it can be wrong, and its bytes stay while the job reads them.
    """
    if batch.is_inline:
        return None
    try:
        file = await get_file(parts.files, batch.project, batch.input_file_id)
    except FileNotFound:
        return _no_file(batch)
    if file.purpose != FilePurpose.BATCH:
        message = f"The input file has the purpose '{file.purpose}'. Upload it with the purpose 'batch'."
        return LineFault("invalid_request", message, "file_id")
    return None if file.bytes else _EMPTY


def _no_file(batch: Row[Any]) -> LineFault:
    message = (
        f"Cannot find file {batch.input_file_id}, or organization {batch.project} does not have access to it. "
        "Upload it to the project of this key, with the purpose 'batch'."
    )
    return LineFault("invalid_request", message, "file_id")


def _lines(parts: StepParts, batch: Row[Any]) -> LineIterator:
    chunks = read_file(parts.files, batch.input_file_id)
    return LineIterator(parts.work, batch.project, chunks, max_line_bytes=parts.store.settings.max_line_bytes)


async def _find_repeated_ids(
    parts: StepParts, step: ClaimedStep, batch: Row[Any], checks: LineChecks
) -> tuple[Numbers | None, LineErrors]:
    """Numbers of the lines that repeat a custom_id, and their errors. Reads the file again where there may be some."""
    repeated = await parts.work.run(step.project, checks.hashes.repeated)
    if not len(repeated):
        return None, LineErrors()
    look = RepeatedIds(checks, repeated)
    async with aclosing(_lines(parts, batch).map(look.read)) as lines:
        async for _ in lines:
            step.check()
            if look.is_full:
                break
    return await parts.work.run(step.project, look.finish)


def _fault_of_size(parts: StepParts, checks: LineChecks) -> LineFault | None:
    """Why the rest of the file is not read: it has more lines than a job has inputs, or too many that cannot run."""
    settings = parts.store.settings
    if checks.total > settings.max_inputs_per_job:
        message = f"The file has more than {settings.max_inputs_per_job} lines. Send it as several batches."
        return LineFault("too_many_inputs", message, None)
    if checks.refused > settings.max_errors_per_job:
        message = (
            f"More than {settings.max_errors_per_job} lines of the file cannot run. Correct it, and send it again."
        )
        return LineFault("too_many_errors", message, None)
    return None


def _faults_of_all(parts: StepParts, checks: LineChecks) -> list[LineFault]:
    """What is wrong with the file as a whole."""
    faults = []
    if checks.has_too_many_variants:
        message = (
            f"The file has more than {MAX_VARIANTS} different models and sets of options. "
            "Send it as several batches, each with fewer of them."
        )
        faults.append(LineFault("too_many_variants", message, None))
    limit = parts.store.settings.max_inputs_per_job
    if sum(variant.inputs for variant in checks.variants.values()) > limit:
        message = f"The file has more than {limit} inputs. Send it as several batches."
        faults.append(LineFault("too_many_inputs", message, None))
    return faults


async def _start(
    parts: StepParts, step: ClaimedStep, batch: Row[Any], checks: LineChecks, duplicate_lines: Numbers | None
) -> None:
    variants = list(checks.variants.values())
    rows = variant_rows(step.job_id, variants, checks.user)
    packed = None if duplicate_lines is None else zlib.compress(duplicate_lines.astype("<i8").tobytes())
    async with parts.store.database.write() as connection:
        await lock_step(connection, step)
        await _change_job(
            connection,
            step,
            {"status": JobStatus.IN_PROGRESS, **job_columns(variants, checks.user, users_differ=checks.users_differ)},
        )
        await _change_batch(
            connection,
            batch,
            {
                "status": BatchStatus.IN_PROGRESS,
                "in_progress_at": db_now(),
                "total": checks.total,
                "refused": checks.refused,
                "duplicate_lines": packed if duplicate_lines is not None and len(duplicate_lines) else None,
            },
        )
        if rows:
            await connection.execute(insert(JobVariant), rows)
        await move_step(connection, step, StepKind.INGEST)
    log.info(
        "a batch was validated",
        extra={"job_id": step.job_id, "lines": checks.total, "refused": checks.refused, "variants": len(variants)},
    )


async def _fail(parts: StepParts, step: ClaimedStep, batch: Row[Any], errors: Errors, count: int) -> None:
    first = errors[0][1]
    summary = {"code": first.code, "count": 0, "example_index": None, "message": first.message}
    async with parts.store.database.write() as connection:
        await lock_step(connection, step)
        await _change_job(
            connection,
            step,
            {"status": JobStatus.FAILED, "error_summary": [summary], **end_columns(parts.store.settings)},
        )
        await _change_batch(
            connection,
            batch,
            {
                "status": BatchStatus.FAILED,
                "failed_at": db_now(),
                "errors": errors_as_json(errors),
                "error_count": count,
            },
        )
        await record_event(
            connection, EventType.BATCH_FAILED, project=batch.project, job_id=step.job_id, subject_id=batch.id
        )
        await end_step(connection, step)
    log.info("a batch failed its validation", extra={"job_id": step.job_id, "errors": count, "code": first.code})


async def _change_job(connection: AsyncConnection, step: ClaimedStep, values: dict[str, Any]) -> None:
    changed = await connection.execute(
        update(Job)
        .where(Job.id == step.job_id, Job.status == JobStatus.VALIDATING, Job.deleted_at.is_(None))
        .values(version=Job.version + 1, **values)
    )
    if not changed.rowcount:
        raise StepStopped("the job was ended while its file was validated")


async def _change_batch(connection: AsyncConnection, batch: Row[Any], values: dict[str, Any]) -> None:
    changed = await connection.execute(
        update(Batch).where(Batch.id == batch.id, Batch.status == BatchStatus.VALIDATING).values(**values)
    )
    if not changed.rowcount:
        raise StepStopped("the batch was cancelled while its file was validated")
    failpoints.hit("during_validation_end")
