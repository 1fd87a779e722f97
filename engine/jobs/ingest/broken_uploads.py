"""Interrupted uploads: the sweep ends the jobs whose corpus will not be completed."""

from __future__ import annotations

import logging

from sqlalchemy import and_, delete, select

from engine.files.idempotency import owner_is_dead
from engine.job_store import JobStore
from engine.jobs.control.termination import terminate
from engine.jobs.ingest.idempotency import owner_is_alive_here
from models.base import db_now
from models.job import ACTIVE_STATUSES, IdempotencyKey, Job, JobStatus

log = logging.getLogger("embedmill.sweep")
# A suspended process of this machine may continue its uploads within this time.
SUSPENDED_S = 900.0
ABANDONED = and_(Job.status.in_((JobStatus.VALIDATING, *ACTIVE_STATUSES)), Job.upload_lease_until < db_now())


async def end_abandoned_uploads(store: JobStore) -> None:
    """End the jobs whose upload lease has run out and whose upload nobody can continue. Raises StorageUnavailable.

    An upload with an Idempotency-Key stays open for `upload_resume_s`: the same request may continue it.
    """
    resume_s = store.settings.upload_resume_s
    has_key = (
        select(IdempotencyKey.key)
        .where(IdempotencyKey.job_id == Job.id, IdempotencyKey.fingerprint.is_(None))
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )
    async with store.database.read() as connection:
        rows = (
            await connection.execute(
                select(
                    Job.id,
                    Job.upload_owner,
                    has_key.is_not(None).label("has_key"),
                    (db_now() - Job.upload_lease_until).label("since_s"),
                )
                .where(ABANDONED)
                .order_by(Job.upload_lease_until)
            )
        ).all()
    for row in rows:
        if row.has_key and row.since_s < resume_s:
            continue
        if owner_is_alive_here(row.upload_owner) and row.since_s < SUSPENDED_S:
            continue
        reason = "died" if owner_is_dead(row.upload_owner) else "was lost"
        log.warning("an upload was abandoned", extra={"job_id": row.id, "reason": f"its process {reason}"})
        async with store.database.write() as connection:
            await connection.execute(
                delete(IdempotencyKey).where(IdempotencyKey.job_id == row.id, IdempotencyKey.fingerprint.is_(None))
            )
        await terminate(
            store,
            row.id,
            JobStatus.FAILED,
            "upload_interrupted",
            "the corpus did not arrive whole: send it again",
        )
