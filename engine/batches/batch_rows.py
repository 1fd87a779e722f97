"""Rows of batches, with the counters of their jobs. Every query for a caller is bound to the caller's project."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Row, cast, func, select

from engine.job_store import JobStore
from models.batch import Batch, JobVariant
from models.errors import InvalidInput
from models.file_errors import BatchNotFound
from models.job import Job

BATCH_ID = re.compile(r"batch_[0-9a-f]{32}\Z")

_INPUTS = (
    # PostgreSQL's sum of whole numbers is a decimal, which is no number of JSON.
    select(cast(func.coalesce(func.sum(JobVariant.inputs), 0), BigInteger))
    .where(JobVariant.job_id == Batch.job_id)
    .correlate(Batch)
    .scalar_subquery()
)
# The compressed numbers of lines may be long, and only the output needs them.
_COLUMNS = (
    *(column for column in Batch.__table__.columns if column.name != "duplicate_lines"),
    Job.status.label("job_status"),
    Job.alias.label("model"),
    Job.completed.label("job_completed"),
    Job.failed.label("job_failed"),
    Job.prompt_tokens,
    Job.finished_at,
    _INPUTS.label("inputs"),
)
_BATCHES = select(*_COLUMNS).join(Job, Job.id == Batch.job_id).where(Job.deleted_at.is_(None))


async def get_batch(store: JobStore, project: str, batch_id: str) -> Row[Any]:
    """The batch's row. Raises BatchNotFound, alike for another project's, an unknown and a malformed id."""
    row = None
    if BATCH_ID.match(batch_id):
        async with store.database.read() as connection:
            found = await connection.execute(_BATCHES.where(Batch.id == batch_id, Batch.project == project))
            row = found.one_or_none()
    if row is None:
        raise BatchNotFound(batch_id)
    return row


async def list_batches(
    store: JobStore, project: str, *, limit: int, after_id: str | None
) -> tuple[Sequence[Row[Any]], bool]:
    """A page of batches, newest first, after the given id; and whether there are more. Raises InvalidInput."""
    statement = _BATCHES.where(Batch.project == project)
    if after_id is not None:
        if not BATCH_ID.match(after_id):
            raise InvalidInput(
                "Invalid 'after': not the id of a batch. Send the last_id of the page before.",
                param="after",
                code="invalid_value",
            )
        statement = statement.where(Batch.id < after_id)
    async with store.database.read() as connection:
        rows = (await connection.execute(statement.order_by(Batch.id.desc()).limit(limit + 1))).all()
    return rows[:limit], len(rows) > limit
