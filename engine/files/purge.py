"""Purge of files: what has expired, what was deleted, and parts that nothing owns. Any process may be killed within.

Bytes go before the row that knows them, so that a crash leaves a row to find them by.
"""

from __future__ import annotations

import asyncio
import logging
import time

from sqlalchemy import ColumnElement, Select, and_, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.files.file_store import FileStore
from engine.files.idempotency import forget_keys_of
from engine.files.parts import PURGE, object_key
from engine.observability import failpoints
from engine.process.background import ErrorLog
from models.base import db_now
from models.batch import JobStep
from models.errors import ObjectsUnavailable
from models.file import File, FilePart, Upload, UploadStatus
from models.job import Job

log = logging.getLogger("embedmill.files")

# Longest time per round of the sweep, and rows per step.
ROUND_S = 0.5
STEP_ROWS = 100
# Objects that are removed side by side, and how long a round waits for a store that does not answer.
REMOVED_AT_ONCE = 8
ANSWER_S = 5.0
ERRORS = ErrorLog("the removal of bytes of files")
UPLOAD_RETENTION_S = 30 * 86_400.0

EXPIRED = and_(File.expires_at < db_now(), File.deleted_at.is_(None))
# A job that still reads the file keeps it, though nobody sees it any more.
_IS_READ = (
    select(JobStep.job_id)
    .join(Job, Job.id == JobStep.job_id)
    .where(Job.input_file_id == File.id)
    .correlate(File)
    .exists()
)
DELETED = and_(File.deleted_at.is_not(None), ~_IS_READ)
OWNERLESS = and_(FilePart.owner_id.is_(None), FilePart.lease_until < db_now())
TAKEN = FilePart.owner_id == PURGE
OVERDUE_UPLOAD = and_(Upload.status == UploadStatus.PENDING, Upload.expires_at < db_now())
OLD_UPLOAD = and_(Upload.status != UploadStatus.PENDING, Upload.expires_at < db_now() - UPLOAD_RETENTION_S)

# Each is true of the rows that purge has work with; the sweep asks all of them at once.
QUESTIONS = {
    "expired_files": select(File.id).where(EXPIRED).order_by(File.expires_at),
    "deleted_files": select(File.id).where(DELETED).order_by(File.deleted_at),
    "ownerless_parts": select(FilePart.id).where(OWNERLESS).order_by(FilePart.lease_until),
    "taken_parts": select(FilePart.id).where(TAKEN).order_by(FilePart.ordinal),
    "overdue_uploads": select(Upload.id).where(OVERDUE_UPLOAD).order_by(Upload.expires_at),
    "old_uploads": select(Upload.id).where(OLD_UPLOAD).order_by(Upload.status, Upload.expires_at),
}


async def purge_files(store: FileStore, *, answer_s: float = ANSWER_S) -> None:
    """Remove files and parts for ROUND_S; bytes in an object store that is away, or slow, are left for later.

    Raises StorageUnavailable.
    """
    until = time.monotonic() + ROUND_S
    await _expire(store)
    more = True
    while more and time.monotonic() < until:
        await _take_parts(store)
        more = await _remove_parts(store, until, answer_s)


async def _expire(store: FileStore) -> None:
    """Delete expired files, and end uploads whose time is over."""
    async with store.database.write() as connection:
        expired = await _locked(connection, select(File.id).where(EXPIRED).order_by(File.expires_at))
        await connection.execute(update(File).where(File.id.in_(expired)).values(deleted_at=db_now()))
        for file_id in expired:
            await forget_keys_of(connection, file_id)
        overdue = await _locked(connection, select(Upload.id).where(OVERDUE_UPLOAD).order_by(Upload.expires_at))
        await connection.execute(update(Upload).where(Upload.id.in_(overdue)).values(status=UploadStatus.EXPIRED))
        await _take(connection, FilePart.owner_id.in_(overdue))
        old = await _locked(connection, select(Upload.id).where(OLD_UPLOAD).order_by(Upload.status, Upload.expires_at))
        await connection.execute(delete(Upload).where(Upload.id.in_(old)))


async def _take_parts(store: FileStore) -> None:
    """Take the parts that nothing owns, and those of deleted files: nothing adopts or reads them from then on."""
    async with store.database.write() as connection:
        ownerless = await _locked(connection, select(FilePart.id).where(OWNERLESS).order_by(FilePart.lease_until))
        await _take(connection, FilePart.id.in_(ownerless))
        gone = await _locked(connection, select(File.id).where(DELETED).order_by(File.deleted_at))
        await connection.execute(delete(File).where(File.id.in_(gone)))
        await _take(connection, FilePart.owner_id.in_(gone))
    if ownerless:
        log.warning("parts of broken-off uploads are removed", extra={"count": len(ownerless)})
    if gone:
        log.info("deleted files are removed", extra={"count": len(gone)})


async def _locked(connection: AsyncConnection, ids: Select[str]) -> list[str]:
    """The first of these rows, locked, without those that another purge has in hand."""
    found = await connection.execute(ids.limit(STEP_ROWS).with_for_update(skip_locked=True))
    return list(found.scalars())


async def _take(connection: AsyncConnection, parts: ColumnElement[bool]) -> None:
    await connection.execute(update(FilePart).where(parts).values(owner_id=PURGE, ordinal=None))


async def _remove_parts(store: FileStore, until: float, answer_s: float) -> bool:
    """Remove the bytes of some parts that purge has taken, then their rows; False: there are no more, or no time."""
    async with store.database.read() as connection:
        found = await connection.execute(select(FilePart.id).where(TAKEN).limit(STEP_ROWS))
        part_ids = list(found.scalars())
    removed: list[str] = []

    async def remove(part_id: str) -> None:
        await store.objects.delete(object_key(part_id))
        removed.append(part_id)
        failpoints.hit("during_file_purge")

    try:
        # The other duties of the sweep need no object store, and do not wait for it.
        async with asyncio.timeout(answer_s):
            for low in range(0, len(part_ids), REMOVED_AT_ONCE):
                step = (remove(part_id) for part_id in part_ids[low : low + REMOVED_AT_ONCE])
                for error in await asyncio.gather(*step, return_exceptions=True):
                    if error is not None:
                        raise error
                if time.monotonic() >= until:
                    break
        ERRORS.succeeded()
    except ObjectsUnavailable as error:
        ERRORS.failed(error)
    except TimeoutError:
        ERRORS.failed(
            ObjectsUnavailable(f"the object store did not answer within {answer_s:g} s: see whether it is up")
        )
    if removed:
        async with store.database.write() as connection:
            await connection.execute(delete(FilePart).where(FilePart.id.in_(removed), TAKEN))
    return len(removed) == STEP_ROWS
