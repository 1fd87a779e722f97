"""Reading files: their rows, for callers, and their bytes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, or_, select, update

from engine.files.file_store import FileStore
from engine.files.idempotency import forget_keys_of
from engine.files.parts import object_key
from models.base import db_now
from models.errors import InvalidInput, ObjectMissing
from models.file import File, FilePart
from models.file_errors import FileNotFound

FILE_ID = re.compile(r"file-[0-9a-f]{32}\Z")
COLUMNS = File.__table__.columns
# What callers see: neither deleted nor expired, though purge has not come yet.
VISIBLE: ColumnElement[bool] = and_(
    File.deleted_at.is_(None), or_(File.expires_at.is_(None), File.expires_at > db_now())
)


async def get_file(store: FileStore, project: str, file_id: str) -> Row[Any]:
    """A file of the project. Raises FileNotFound, StorageUnavailable."""
    if not FILE_ID.match(file_id):
        raise FileNotFound(file_id)
    async with store.database.read() as connection:
        found = await connection.execute(select(*COLUMNS).where(File.id == file_id, File.project == project, VISIBLE))
        row = found.one_or_none()
    if row is None:
        raise FileNotFound(file_id)
    return row


async def list_files(
    store: FileStore,
    project: str,
    *,
    limit: int,
    after_id: str | None = None,
    purpose: str | None = None,
    is_ascending: bool = False,
) -> tuple[Sequence[Row[Any]], bool]:
    """A page of the project's files behind the given one, by age; and whether there are more. Raises InvalidInput."""
    statement = select(*COLUMNS).where(File.project == project, VISIBLE)
    if after_id is not None:
        if not FILE_ID.match(after_id):
            raise InvalidInput(
                "Invalid 'after': not the id of a file. Send the last_id of the page before.",
                param="after",
                code="invalid_value",
            )
        statement = statement.where(File.id > after_id if is_ascending else File.id < after_id)
    if purpose is not None:
        statement = statement.where(File.purpose == purpose)
    order = File.id.asc() if is_ascending else File.id.desc()
    async with store.database.read() as connection:
        rows = (await connection.execute(statement.order_by(order).limit(limit + 1))).all()
    return rows[:limit], len(rows) > limit


async def delete_file(store: FileStore, project: str, file_id: str) -> None:
    """Hide a file from callers; purge removes it. Raises FileNotFound, StorageUnavailable."""
    if not FILE_ID.match(file_id):
        raise FileNotFound(file_id)
    async with store.database.write() as connection:
        deleted = await connection.execute(
            update(File).where(File.id == file_id, File.project == project, VISIBLE).values(deleted_at=db_now())
        )
        if deleted.rowcount != 1:
            raise FileNotFound(file_id)
        await forget_keys_of(connection, file_id)


async def read_file(store: FileStore, file_id: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
    """The bytes `start..stop` of a file, in pieces of at most 1 MiB, of whatever project; also of a deleted file.

    Raises FileNotFound when nothing is stored of it, ObjectMissing when bytes went meanwhile, ObjectsUnavailable,
    StorageUnavailable.
    """
    async with store.database.read() as connection:
        found = await connection.execute(
            select(FilePart.id, func.coalesce(FilePart.bytes, 0).label("bytes"))
            .where(FilePart.owner_id == file_id)
            .order_by(FilePart.ordinal)
        )
        parts = found.all()
    if not parts:
        raise FileNotFound(file_id)
    position = 0
    for part_id, part_bytes in parts:
        size = int(part_bytes or 0)
        low, high = max(start - position, 0), size if stop is None else min(stop - position, size)
        position += size
        if low >= high:
            continue
        count = 0
        async for piece in store.objects.read(object_key(part_id), low, high):
            count += len(piece)
            yield piece
        if count != high - low:
            raise ObjectMissing("an object of a file is shorter than the database says: it is damaged")
