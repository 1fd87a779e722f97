"""Reading: whoever downloads a job's results holds a lease on them, and purge waits for it.

A deleted job is gone for every new request at once; a download that had begun goes on from the rows, to its end. The
lease is renewed as the download moves on, so a reader that stands still, or dies, keeps a deleted job only so long.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Row, or_, update

from engine.jobs.allowed_actions import job_not_found
from engine.runtime import Runtime
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import Job

READ_LEASE_S = 120.0
RENEW_EVERY_S = 20.0
UNREAD = or_(Job.read_until.is_(None), Job.read_until < db_now())
Chunk = TypeVar("Chunk")


async def acquire_read_lease(runtime: Runtime, job: Row[Any]) -> None:
    """Take the lease, before anything is promised of the results. Raises JobNotFound when the job was just deleted.

    Readers of many small ranges write once in RENEW_EVERY_S. A database that takes no writes is read without a lease:
    then the checks of the reader alone see to it that nothing is missing.
    """
    if job.read_until is not None and job.read_until > job.now + READ_LEASE_S - RENEW_EVERY_S:
        return
    with suppress(StorageUnavailable):
        async with runtime.database.write() as connection:
            leased = await connection.execute(
                update(Job).where(Job.id == job.id, Job.deleted_at.is_(None)).values(read_until=db_now() + READ_LEASE_S)
            )
        if not leased.rowcount:
            raise job_not_found()


async def renew_while_reading(runtime: Runtime, job_id: str, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """The same pieces; the lease is renewed between them."""
    renewed_at = time.monotonic()
    async for chunk in chunks:
        yield chunk
        if time.monotonic() - renewed_at >= RENEW_EVERY_S:
            renewed_at = time.monotonic()
            with suppress(StorageUnavailable):
                async with runtime.database.write() as connection:
                    await connection.execute(
                        update(Job).where(Job.id == job_id).values(read_until=db_now() + READ_LEASE_S)
                    )
