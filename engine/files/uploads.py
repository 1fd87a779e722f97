"""Uploads: a file that arrives in parts, in any order and side by side; completing it puts them in order.

Every change locks the upload's row first, then rows of parts.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.files.file_store import FileStore
from engine.files.parts import PURGE, PartLeases, WrittenPart, adopt_part, discard_part, write_part_under
from engine.files.write import expiry
from models.base import db_now
from models.errors import Conflict, InvalidInput
from models.file import FilePart, FilePurpose, Upload, UploadStatus
from models.file_errors import UploadNotFound

UPLOAD_ID = re.compile(r"upload_[0-9a-f]{32}\Z")
PART_ID = re.compile(r"part_[0-9a-f]{32}\Z")
# OpenAI's, like the largest part (specification of August 2026).
LIFE_S = 3600
MAX_PART_BYTES = 64 * 1024 * 1024
MAX_PARTS = 10_000
# A part that is sent again after a lost answer leaves a duplicate: the parts may have twice the declared size and this.
DUPLICATE_BYTES = 64 * 1024 * 1024
COLUMNS = (*Upload.__table__.columns, db_now().label("now"))


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """What a caller says of the file that will arrive. `bytes`: the sum of its parts."""

    purpose: FilePurpose
    filename: str
    mime_type: str
    bytes: int
    file_expires_after_s: int | None


async def create_upload(
    connection: AsyncConnection, spec: UploadSpec, *, upload_id: str, project: str, key_id: str
) -> None:
    """Insert a pending upload, in the caller's transaction."""
    await connection.execute(
        insert(Upload).values(
            id=upload_id,
            project=project,
            key_id=key_id,
            purpose=spec.purpose,
            filename=spec.filename,
            mime_type=spec.mime_type,
            bytes=spec.bytes,
            status=UploadStatus.PENDING,
            file_expires_after_s=spec.file_expires_after_s,
            created_at=db_now(),
            expires_at=expiry(LIFE_S),
        )
    )


async def get_upload(store: FileStore, project: str, upload_id: str) -> Row[Any]:
    """An upload of the project, with `now`. Raises UploadNotFound, StorageUnavailable."""
    row = None
    if UPLOAD_ID.match(upload_id):
        async with store.database.read() as connection:
            found = await connection.execute(select(*COLUMNS).where(Upload.id == upload_id, Upload.project == project))
            row = found.one_or_none()
    if row is None:
        raise UploadNotFound(upload_id)
    return row


def status_of(row: Row[Any]) -> UploadStatus:
    """The state of an upload; `expired` before purge has written it down."""
    is_late = row.status == UploadStatus.PENDING and row.expires_at < row.now
    return UploadStatus.EXPIRED if is_late else UploadStatus(row.status)


def check_pending(row: Row[Any]) -> None:
    """Raises Conflict for an upload that takes no parts any more."""
    status = status_of(row)
    if status is not UploadStatus.PENDING:
        raise Conflict(f"The upload is {status}: make a new one.", code=f"upload_{status}")


def is_pending(project: str, upload_id: str) -> ColumnElement[bool]:
    """Condition on an upload: it is this one, and takes parts."""
    return (
        (Upload.id == upload_id)
        & (Upload.project == project)
        & (Upload.status == UploadStatus.PENDING)
        & (Upload.expires_at > db_now())
    )


async def lock_upload(connection: AsyncConnection, project: str, upload_id: str, **values: Any) -> bool:
    """Lock a pending upload until the transaction ends, and set these columns; False: it is pending no more."""
    locked = await connection.execute(
        update(Upload).where(is_pending(project, upload_id)).values(values or {"status": UploadStatus.PENDING})
    )
    return locked.rowcount == 1


async def add_part(
    store: FileStore,
    project: str,
    upload_id: str,
    chunks: AsyncIterator[bytes],
    finish: Callable[[], Awaitable[object]],
) -> tuple[str, float]:
    """Store a part of a pending upload. Returns its id, and the instant at which it was begun.

    `finish` checks what follows the chunks: when it raises, nothing is kept.

    Raises UploadNotFound, Conflict, InvalidInput for too many, too large or empty parts, and as `write_part` does.
    """
    row = await get_upload(store, project, upload_id)
    check_pending(row)
    async with store.database.read() as connection:
        _, stored_bytes = await _totals(connection, upload_id)
    chunks = _within(chunks, row.bytes, stored_bytes)
    async with PartLeases(store.database, lease_s=store.settings.lease_s) as leases:
        part = await write_part_under(leases, store, project, chunks)
        is_adopted = False
        try:
            await finish()
            await _adopt(store, project, upload_id, part, row.bytes)
            is_adopted = True
        finally:
            if not is_adopted:
                await discard_part(store, part.id)
    async with store.database.read() as connection:
        created_at = (await connection.execute(select(FilePart.created_at).where(FilePart.id == part.id))).scalar()
    return part.id, float(created_at or 0)


async def _within(chunks: AsyncIterator[bytes], declared_bytes: int, stored_bytes: int) -> AsyncIterator[bytes]:
    count = 0
    async for chunk in chunks:
        count += len(chunk)
        check_part(count, declared_bytes)
        _check_sum(stored_bytes + count, declared_bytes)
        yield chunk


def check_part(part_bytes: int, declared_bytes: int) -> None:
    """Raises InvalidInput for a part that is larger than the file that was declared."""
    if part_bytes > declared_bytes:
        raise InvalidInput(
            f"The part is larger than the whole file, for which {declared_bytes} bytes were declared: "
            "send a part of that file, or make a new upload with the right number of bytes.",
            param="data",
            code="too_many_bytes",
        )


def _check_sum(parts_bytes: int, declared_bytes: int) -> None:
    if parts_bytes > 2 * declared_bytes + DUPLICATE_BYTES:
        raise InvalidInput(
            f"The parts of the upload have far more bytes than the {declared_bytes} that were declared: "
            "name those that are right and complete it, or cancel it and make a new one with the right number.",
            param="data",
            code="too_many_bytes",
        )


async def _totals(connection: AsyncConnection, upload_id: str) -> tuple[int, int]:
    """How many parts the upload has, and their bytes."""
    totals = select(func.count(), func.coalesce(func.sum(FilePart.bytes), 0)).where(FilePart.owner_id == upload_id)
    count, size = (await connection.execute(totals)).one()
    return int(count), int(size or 0)


async def _adopt(store: FileStore, project: str, upload_id: str, part: WrittenPart, declared_bytes: int) -> None:
    if part.bytes == 0:
        raise InvalidInput("The part is empty: send at least one byte.", param="data", code="empty_part")
    async with store.database.write() as connection:
        is_locked = await lock_upload(connection, project, upload_id)
        if is_locked:
            await _check_room(connection, store, upload_id, part.bytes, declared_bytes)
            await adopt_part(connection, part, owner_id=upload_id, ordinal=None)
    if not is_locked:
        check_pending(await get_upload(store, project, upload_id))
        raise Conflict("The upload has changed meanwhile: send the part again.", should_retry=True)


async def _check_room(
    connection: AsyncConnection, store: FileStore, upload_id: str, more_bytes: int, declared_bytes: int
) -> None:
    count, size = await _totals(connection, upload_id)
    if count >= MAX_PARTS:
        raise InvalidInput(
            f"The upload has {MAX_PARTS} parts, which is the most: send larger ones.",
            param="data",
            code="too_many_parts",
        )
    _check_sum(size + more_bytes, declared_bytes)
    if size + more_bytes > store.settings.max_file_bytes:
        raise InvalidInput(
            f"The parts of the upload are larger than {store.settings.max_file_bytes} bytes together, "
            "which is the most: name those that are right and complete it, or cancel it.",
            param="data",
            code="too_many_bytes",
        )


async def cancel_upload(store: FileStore, project: str, upload_id: str) -> Row[Any]:
    """Cancel a pending upload; its parts are removed. Again is the same. Raises UploadNotFound, Conflict."""
    row = await get_upload(store, project, upload_id)
    if row.status != UploadStatus.CANCELLED:
        async with store.database.write() as connection:
            is_cancelled = await lock_upload(connection, project, upload_id, status=UploadStatus.CANCELLED)
            if is_cancelled:
                await connection.execute(update(FilePart).where(FilePart.owner_id == upload_id).values(owner_id=PURGE))
        row = await get_upload(store, project, upload_id)
        if row.status != UploadStatus.CANCELLED:
            check_pending(row)
    return row


async def parts_of(connection: AsyncConnection, owner_id: str) -> dict[str, int]:
    """The sizes of an upload's or a file's parts by their ids, in the order of the file."""
    found = await connection.execute(
        select(FilePart.id, FilePart.bytes).where(FilePart.owner_id == owner_id).order_by(FilePart.ordinal)
    )
    return {part_id: int(size or 0) for part_id, size in found}


async def order_parts(connection: AsyncConnection, part_ids: Sequence[str]) -> None:
    """Number the parts in this order."""
    statement = update(FilePart).where(FilePart.id == bindparam("part")).values(ordinal=bindparam("place"))
    await connection.execute(statement, [{"part": part_id, "place": place} for place, part_id in enumerate(part_ids)])
