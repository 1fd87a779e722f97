"""Completing an upload: the parts that the caller names become the file, in that order; all others are removed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Row, update

from engine.files.file_store import FileStore
from engine.files.parts import PURGE, add_file, object_key
from engine.files.purposes import FirstLine, life_s
from engine.files.uploads import (
    PART_ID,
    check_pending,
    get_upload,
    lock_upload,
    order_parts,
    parts_of,
)
from engine.files.write import expiry
from engine.observability import failpoints
from engine.process.work_threads import WorkThreads
from models.errors import Conflict, InvalidInput, ObjectMissing
from models.file import FilePart, FilePurpose, UploadStatus, new_file_id

MD5 = re.compile(r"[0-9a-fA-F]{32}\Z")


async def complete_upload(
    store: FileStore,
    work: WorkThreads,
    *,
    project: str,
    key_id: str,
    upload_id: str,
    part_ids: Sequence[str],
    md5: str | None,
) -> Row[Any]:
    """Make the file. Returns the upload's row. Completing with the same parts again is the same.

    Raises UploadNotFound; Conflict when the upload has ended; InvalidInput for parts that are unknown or named twice,
    and for another size or MD5 than the caller says; FileRefused; ObjectsUnavailable; StorageUnavailable.
    """
    _check_names(part_ids)
    if md5 is not None and not MD5.match(md5):
        raise InvalidInput("Invalid 'md5': expected 32 hex digits.", param="md5", code="invalid_value")
    await get_upload(store, project, upload_id)
    async with store.database.read() as connection:
        sizes = await parts_of(connection, upload_id)
    # Behind the parts: an upload that is still pending had these parts.
    row = await get_upload(store, project, upload_id)
    if row.status == UploadStatus.COMPLETED:
        return await _completed(store, row, part_ids)
    check_pending(row)
    check_parts(sizes, part_ids, row.bytes)
    await _check_content(store, work, row, part_ids, md5)
    file_id = new_file_id()
    async with store.database.write() as connection:
        is_first = await lock_upload(connection, project, upload_id, status=UploadStatus.COMPLETED, file_id=file_id)
        if is_first:
            await order_parts(connection, part_ids)
            await connection.execute(
                update(FilePart)
                .where(FilePart.owner_id == upload_id, FilePart.ordinal.is_(None))
                .values(owner_id=PURGE)
            )
            await add_file(
                connection,
                file_id=file_id,
                project=project,
                key_id=key_id,
                purpose=row.purpose,
                filename=row.filename,
                parts_of=upload_id,
                expires_at=expiry(life_s(FilePurpose(row.purpose), row.file_expires_after_s)),
            )
    failpoints.hit("after_file_commit")
    row = await get_upload(store, project, upload_id)
    return row if is_first else await _completed(store, row, part_ids)


async def _completed(store: FileStore, row: Row[Any], part_ids: Sequence[str]) -> Row[Any]:
    """The row of an upload that another request has ended. Raises Conflict unless that was an equal one."""
    if row.status == UploadStatus.COMPLETED:
        async with store.database.read() as connection:
            if list(await parts_of(connection, row.file_id)) == list(part_ids):
                return row
    check_pending(row)
    raise Conflict("The upload has changed meanwhile: send the request again.", should_retry=True)


def _check_names(part_ids: Sequence[str]) -> None:
    """Raises InvalidInput for a list that is wrong whatever the upload holds."""
    if not part_ids:
        raise InvalidInput("Invalid 'part_ids': name at least one part.", param="part_ids", code="empty_array")
    seen: set[str] = set()
    for place, part_id in enumerate(part_ids):
        if part_id in seen:
            raise InvalidInput(
                f"Invalid 'part_ids[{place}]': the part is named twice. Name it once.",
                param=f"part_ids[{place}]",
                code="invalid_value",
            )
        seen.add(part_id)


def check_parts(sizes: dict[str, int], part_ids: Sequence[str], declared_bytes: int) -> None:
    """Raises InvalidInput unless the upload has these parts, and they have the declared size together."""
    for place, part_id in enumerate(part_ids):
        if not PART_ID.match(part_id) or part_id not in sizes:
            raise InvalidInput(
                f"Invalid 'part_ids[{place}]': the upload has no part '{part_id[:80]}'. Name parts of its own.",
                param=f"part_ids[{place}]",
                code="invalid_value",
            )
    total = sum(sizes[part_id] for part_id in part_ids)
    if total != declared_bytes:
        raise InvalidInput(
            f"The parts have {total} bytes together, and the upload was created for {declared_bytes}: "
            "send what is missing, then complete it; or make a new upload.",
            param="part_ids",
            code="bytes_mismatch",
        )


async def _check_content(
    store: FileStore, work: WorkThreads, row: Row[Any], part_ids: Sequence[str], md5: str | None
) -> None:
    """Compare the MD5 of the whole, and look at the first line of the input of a batch. Reads only what it must."""
    first_line = FirstLine() if row.purpose == FilePurpose.BATCH else None
    if md5 is None and first_line is None:
        return
    hasher = hashlib.md5(usedforsecurity=False)

    def look(piece: bytes) -> None:
        if first_line is not None:
            first_line.feed(piece)
        if md5 is not None:
            hasher.update(piece)

    for part_id in part_ids:
        try:
            async for piece in store.objects.read(object_key(part_id)):
                await work.run(row.project, partial(look, piece))
                if md5 is None and first_line is not None and first_line.is_complete:
                    break
        except ObjectMissing:  # the upload was cancelled, or completed with other parts
            check_pending(await get_upload(store, row.project, row.id))
            raise
        if md5 is None and first_line is not None and first_line.is_complete:
            break
    if first_line is not None:
        first_line.check()
    if md5 is not None and hasher.hexdigest() != md5.lower():
        raise InvalidInput(
            f"The MD5 of the parts in this order is {hasher.hexdigest()}, and not the one that was sent: "
            "name the parts in the order of the file, or send them again.",
            param="md5",
            code="md5_mismatch",
        )
