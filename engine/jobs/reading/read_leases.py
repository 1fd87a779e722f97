"""Read leases: a download of results holds a lease on them, and purge waits until it has run out.

No new request sees a deleted job, but a download that has started continues to its end. The lease is renewed while the
download makes progress, so a stalled or dead reader delays the purge only for READ_LEASE_S.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Row, or_, update

from engine.jobs.allowed_actions import job_not_found
from engine.storage.database import Database
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import Job

READ_LEASE_S = 120.0
RENEW_EVERY_S = 20.0
UNREAD = or_(Job.read_until.is_(None), Job.read_until < db_now())
Chunk = TypeVar("Chunk")


async def acquire_read_lease(database: Database, job: Row[Any]) -> None:
    """Take the lease before the response starts. Raises JobNotFound when the job was deleted meanwhile.

    Readers of many small ranges write only every RENEW_EVERY_S. Without write access the results are read without a
    lease; the reader's own checks then detect missing rows.
    """
    if job.read_until is not None and job.read_until > job.now + READ_LEASE_S - RENEW_EVERY_S:
        return
    with suppress(StorageUnavailable):
        async with database.write() as connection:
            leased = await connection.execute(
                update(Job).where(Job.id == job.id, Job.deleted_at.is_(None)).values(read_until=db_now() + READ_LEASE_S)
            )
        if not leased.rowcount:
            raise job_not_found()


async def renew_while_reading(database: Database, job_id: str, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """The same chunks; the lease is renewed between them."""
    renewed_at = time.monotonic()
    async for chunk in chunks:
        yield chunk
        if time.monotonic() - renewed_at >= RENEW_EVERY_S:
            renewed_at = time.monotonic()
            with suppress(StorageUnavailable):
                async with database.write() as connection:
                    await connection.execute(
                        update(Job).where(Job.id == job_id).values(read_until=db_now() + READ_LEASE_S)
                    )
