"""Parts: the objects that files consist of. A part's row is there before its bytes, so a crash leaves nothing unknown.

A part is leased by the process that writes it until something owns it. Purge removes parts that nothing owns once their
lease has run out: it first takes the row (`owner_id` = PURGE), so that nothing adopts a part whose bytes are going.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.files.file_store import FileStore
from engine.observability import failpoints
from engine.process.background import ErrorLog, surviving
from engine.storage.database import Database
from models.base import db_now, new_id
from models.errors import UploadInterrupted
from models.file import File, FilePart

log = logging.getLogger("embedmill.files")

# Bytes in one object at the most.
PART_BYTES = 64 * 1024 * 1024
# The owner of parts that purge removes.
PURGE = "purge"
ROWS_PER_STATEMENT = 1000


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """A part whose bytes are in the object store, and which nothing owns yet."""

    id: str
    bytes: int


def object_key(part_id: str) -> str:
    """The key of a part's bytes. The end of an id is random, so the folders fill evenly."""
    return f"parts/{part_id[-2:]}/{part_id}"


class PartLeases:
    """Renews the leases of parts from their first byte until they are adopted. An async context manager."""

    def __init__(self, database: Database, *, lease_s: float) -> None:
        self._database = database
        self._lease_s = lease_s
        self._ids: list[str] = []
        self._errors = ErrorLog("the renewal of the leases of parts")
        self._task: asyncio.Task[None] | None = None

    def add(self, part_id: str) -> None:
        """Keep the lease of this part, too."""
        self._ids.append(part_id)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 4)
            with self._errors.round():
                for low in range(0, len(self._ids), ROWS_PER_STATEMENT):
                    async with self._database.write() as connection:
                        await connection.execute(
                            update(FilePart)
                            .where(
                                FilePart.id.in_(self._ids[low : low + ROWS_PER_STATEMENT]), FilePart.owner_id.is_(None)
                            )
                            .values(lease_until=db_now() + self._lease_s)
                        )

    async def __aenter__(self) -> PartLeases:
        self._task = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


async def write_part(store: FileStore, project: str, chunks: AsyncIterator[bytes]) -> WrittenPart:
    """Store the chunks as one part. Adopt it within `lease_s`, or purge removes it.

    Raises UploadInterrupted or ObjectsUnavailable when this process stood still for so long that its lease ran out;
    ObjectsUnavailable; StorageUnavailable; and what `chunks` raises.
    """
    async with PartLeases(store.database, lease_s=store.settings.lease_s) as leases:
        return await write_part_under(leases, store, project, chunks)


async def write_part_under(
    leases: PartLeases, store: FileStore, project: str, chunks: AsyncIterator[bytes]
) -> WrittenPart:
    """As `write_part`, for one of several parts whose leases are kept together. Raises as it does."""
    lease_s = store.settings.lease_s
    part_id = new_id("part")
    async with store.database.write() as connection:
        await connection.execute(
            insert(FilePart).values(
                id=part_id, project=project, created_at=db_now(), lease_until=db_now() + lease_s, ordinal=None
            )
        )
    leases.add(part_id)
    failpoints.hit("after_part_insert")
    is_written = False
    try:
        size = await store.objects.write(object_key(part_id), chunks)
        failpoints.hit("after_part_write")
        async with store.database.write() as connection:
            updated = await connection.execute(
                update(FilePart)
                .where(FilePart.id == part_id, FilePart.owner_id.is_(None))
                .values(bytes=size, lease_until=db_now() + lease_s)
            )
        is_written = updated.rowcount == 1
    finally:
        if not is_written:
            with surviving(lambda error: log.warning("a part that was not stored is left to purge: %s", error)):
                await discard_part(store, part_id)
    if not is_written:
        raise lease_lost()
    return WrittenPart(part_id, size)


async def discard_part(store: FileStore, part_id: str) -> None:
    """Remove a part that nothing owns, bytes first. Raises StorageUnavailable, ObjectsUnavailable."""
    async with store.database.write() as connection:
        await connection.execute(
            update(FilePart).where(FilePart.id == part_id, FilePart.owner_id.is_(None)).values(owner_id=PURGE)
        )
        owner_id = (await connection.execute(select(FilePart.owner_id).where(FilePart.id == part_id))).scalar()
    if owner_id not in (None, PURGE):  # the transaction that gave it away was committed, and its answer was lost
        return
    await store.objects.delete(object_key(part_id))
    async with store.database.write() as connection:
        await connection.execute(delete(FilePart).where(FilePart.id == part_id, FilePart.owner_id == PURGE))


async def adopt_part(connection: AsyncConnection, part: WrittenPart, *, owner_id: str, ordinal: int | None) -> None:
    """Give a part its owner. Raises UploadInterrupted when its lease ran out and purge has taken it."""
    adopted = await connection.execute(
        update(FilePart)
        .where(FilePart.id == part.id, FilePart.owner_id.is_(None), FilePart.bytes.is_not(None))
        .values(owner_id=owner_id, ordinal=ordinal, lease_until=None)
    )
    if adopted.rowcount != 1:
        raise lease_lost()


async def add_file(
    connection: AsyncConnection,
    *,
    file_id: str,
    project: str,
    key_id: str,
    purpose: str,
    filename: str,
    parts_of: str,
    expires_at: Any,
) -> int:
    """Insert a file and give it the parts that `parts_of` owns, in their order. Returns its size in bytes.

    `expires_at`: unix seconds, or SQL for them; None: never.
    """
    await connection.execute(update(FilePart).where(FilePart.owner_id == parts_of).values(owner_id=file_id))
    total = func.coalesce(func.sum(FilePart.bytes), 0)
    size = (await connection.execute(select(total).where(FilePart.owner_id == file_id))).scalar_one()
    await connection.execute(
        insert(File).values(
            id=file_id,
            project=project,
            key_id=key_id,
            purpose=purpose,
            filename=filename,
            bytes=int(size or 0),
            created_at=db_now(),
            expires_at=expires_at,
        )
    )
    failpoints.hit("during_file_commit")
    return int(size or 0)


async def disown_parts(connection: AsyncConnection, owner_id: str) -> None:
    """Let purge remove all parts of this owner."""
    await connection.execute(
        update(FilePart).where(FilePart.owner_id == owner_id).values(owner_id=PURGE, ordinal=None, lease_until=None)
    )


def lease_lost() -> UploadInterrupted:
    """The error of a process that stood still while it wrote."""
    return UploadInterrupted(
        "The server stood still while it received the file, and gave it up: send it again.", retry_after_s=1.0
    )
