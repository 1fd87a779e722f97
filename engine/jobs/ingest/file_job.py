"""Jobs whose corpus is a stored file: the row and its first step are inserted at once, and a worker reads the file."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, insert, select, update

from engine.access.keys import Caller
from engine.files.read import VISIBLE
from engine.job_store import JobStore
from engine.jobs.ingest.idempotency import Reservation, owned_by
from engine.jobs.ingest.job_row import initial_columns
from engine.jobs.ingest.sharding import JobSpec
from engine.webhooks.endpoints import attach_requested
from models.base import db_now
from models.batch import JobStep, StepKind
from models.errors import Conflict
from models.file import File
from models.file_errors import FileNotFound
from models.job import IdempotencyKey, Job


async def create_file_job(
    store: JobStore,
    caller: Caller,
    spec: JobSpec,
    reservation: Reservation,
    fingerprint: bytes,
    *,
    file_id: str,
    columns: dict[str, Any],
) -> None:
    """Insert the job `reservation.job_id`, in progress, and the step that reads its file. `columns`: of its table.

    Raises FileNotFound when the file was deleted meanwhile; Conflict when another request took the Idempotency-Key
    over; StorageUnavailable. Nothing is stored then.
    """
    is_created = False
    try:
        async with store.database.write() as connection:
            # Purge waits for the step, and for this transaction until the step is there.
            file = select(File.id).where(File.id == file_id, File.project == caller.project, VISIBLE)
            if (await connection.execute(file.with_for_update(read=True))).first() is None:
                raise FileNotFound(file_id)
            await connection.execute(
                insert(Job).values(
                    initial_columns(store.settings, caller, spec, reservation.job_id) | {"input_file_id": file_id}
                )
            )
            await attach_requested(connection, spec.webhook, project=caller.project, job_id=reservation.job_id)
            await connection.execute(
                insert(JobStep).values(
                    job_id=reservation.job_id,
                    project=caller.project,
                    kind=StepKind.INGEST,
                    due_at=db_now(),
                    fence=0,
                    attempts=0,
                    progress=columns,
                )
            )
            if reservation.key is not None:
                owned = await connection.execute(
                    update(IdempotencyKey)
                    .where(owned_by(reservation, caller.project))
                    .values(
                        fingerprint=fingerprint,
                        owner=None,
                        owner_until=None,
                        expires_at=db_now() + store.settings.idempotency_hours * 3600.0,
                    )
                )
                if not owned.rowcount:
                    raise Conflict(
                        "Another request with this Idempotency-Key has taken this one over: read the answer of that.",
                        code="upload_taken_over",
                        should_retry=True,
                    )
        is_created = True
    finally:
        if not is_created and reservation.key is not None:
            async with store.database.write() as connection:
                await connection.execute(delete(IdempotencyKey).where(owned_by(reservation, caller.project)))
