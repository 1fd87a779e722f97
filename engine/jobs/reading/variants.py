"""Variants as readers see them: the width of a job's vectors, and how far a job of a batch is stored."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from engine.storage.database import Database
from models.batch import JobVariant
from models.errors import Conflict


async def vector_width(database: Database, job: Row[Any]) -> int:
    """The one width of the job's vectors. Raises Conflict for a batch whose requests have several."""
    if job.dimensions or job.batch_id is None:
        return int(job.dimensions)
    async with database.read() as connection:
        found = await connection.execute(
            select(JobVariant.dimensions).where(JobVariant.job_id == job.id, JobVariant.error.is_(None)).distinct()
        )
        widths = sorted(found.scalars())
    if len(widths) > 1:
        raise Conflict(
            f"The vectors of this batch have several widths ({', '.join(map(str, widths[:10]))}), so an index range "
            f"is no one matrix: read them line by line at GET /v1/batches/{job.batch_id}/results.",
            code="mixed_dimensions",
        )
    # Before its validation, and without a variant that can run, a batch has no vectors.
    return widths[0] if widths else 1


async def stored_prefix(database: Database, job: Row[Any]) -> int:
    """How many indexes from 0 on are stored, while the file of a batch is read too: variants grow side by side."""
    if job.total is not None or job.batch_id is None:
        return int(job.ingested)
    async with database.read() as connection:
        rows = await connection.execute(
            select(JobVariant.inputs, JobVariant.ingested)
            .where(JobVariant.job_id == job.id, JobVariant.error.is_(None))
            .order_by(JobVariant.first_index)
        )
        stored = 0
        for row in rows:
            stored += int(row.ingested)
            if row.ingested < row.inputs:
                break
    return stored
