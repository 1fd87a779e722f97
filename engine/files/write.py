"""Storing a file that arrives as a stream: its bytes become parts, and the file is there when all are stored."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.files.file_store import FileStore
from engine.files.parts import PART_BYTES, PartLeases, WrittenPart, add_file, adopt_part, discard_part, write_part_under
from engine.files.read import get_file
from engine.process.background import surviving
from models.base import db_now
from models.errors import PayloadTooLarge
from models.file import new_file_id

log = logging.getLogger("embedmill.files")


class ChunkSplitter:
    """Cuts a stream of chunks into streams of `part_bytes`. Raises PayloadTooLarge beyond `max_bytes`."""

    def __init__(self, chunks: AsyncIterator[bytes], *, part_bytes: int, max_bytes: int) -> None:
        self._chunks = chunks
        self._part_bytes = part_bytes
        self._max_bytes = max_bytes
        self._rest: bytes | memoryview = b""
        self._total = 0

    async def has_more(self) -> bool:
        """Wait until the next byte is there; False: there is none."""
        while not self._rest:
            try:
                self._rest = await anext(self._chunks)
            except StopAsyncIteration:
                return False
            self._total += len(self._rest)
            if self._total > self._max_bytes:
                raise PayloadTooLarge(
                    f"The file is larger than {self._max_bytes} bytes, which is the most that this server takes: "
                    "send it as several files.",
                    param="file",
                )
        return True

    async def next_part(self) -> AsyncIterator[bytes]:
        """The chunks of the next part."""
        left = self._part_bytes
        while left and await self.has_more():
            rest = memoryview(self._rest)
            piece, self._rest = rest[:left], rest[left:]
            left -= len(piece)
            yield bytes(piece)


async def store_parts(
    leases: PartLeases, store: FileStore, project: str, chunks: AsyncIterator[bytes], *, max_bytes: int
) -> list[WrittenPart]:
    """Store the chunks as parts that nothing owns yet; when that fails, those that were stored are discarded.

    Raises PayloadTooLarge, and as `write_part` does.
    """
    splitter = ChunkSplitter(chunks, part_bytes=PART_BYTES, max_bytes=max_bytes)
    parts: list[WrittenPart] = []
    is_stored = False
    try:
        while await splitter.has_more():
            parts.append(await write_part_under(leases, store, project, splitter.next_part()))
        is_stored = True
    finally:
        if not is_stored:
            await discard_parts(store, parts)
    return parts


async def discard_parts(store: FileStore, parts: list[WrittenPart]) -> None:
    """Remove parts that nothing owns. What fails here is left to purge."""
    with surviving(lambda error: log.warning("parts of a file that was not stored are left to purge: %s", error)):
        for part in parts:
            await discard_part(store, part.id)


async def store_file(
    store: FileStore,
    *,
    project: str,
    key_id: str,
    purpose: str,
    filename: str,
    chunks: AsyncIterator[bytes],
    max_bytes: int,
    expires_after_s: int | None,
) -> Row[Any]:
    """Store a file. Raises PayloadTooLarge, UploadInterrupted, ObjectsUnavailable, StorageUnavailable.

    Whatever it raises, nothing of the file is kept.
    """
    async with (
        receive_file(store, project, chunks, max_bytes=max_bytes) as received,
        store.database.write() as connection,
    ):
        await received.add(
            connection,
            file_id=new_file_id(),
            key_id=key_id,
            purpose=purpose,
            filename=filename,
            expires_after_s=expires_after_s,
        )
    return await get_file(store, project, received.file_id)


@contextlib.asynccontextmanager
async def receive_file(
    store: FileStore, project: str, chunks: AsyncIterator[bytes], *, max_bytes: int
) -> AsyncIterator[ReceivedFile]:
    """Store the chunks as parts; within the block they can be made a file. Those that are not are removed after it.

    Raises PayloadTooLarge, and as `write_part` does.
    """
    async with PartLeases(store.database, lease_s=store.settings.lease_s) as leases:
        received = ReceivedFile(project, await store_parts(leases, store, project, chunks, max_bytes=max_bytes))
        is_added = False
        try:
            yield received
            is_added = bool(received.file_id)
        finally:
            if not is_added:
                await discard_parts(store, received.parts)


@dataclass(slots=True)
class ReceivedFile:
    """Parts of a file whose bytes are all stored. `file_id`: empty until it is added."""

    project: str
    parts: list[WrittenPart]
    file_id: str = ""

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return sum(part.bytes for part in self.parts)

    async def add(
        self,
        connection: AsyncConnection,
        *,
        file_id: str,
        key_id: str,
        purpose: str,
        filename: str,
        expires_after_s: int | None,
    ) -> None:
        """Make the parts a file, in the caller's transaction. Raises UploadInterrupted when a part's lease was lost."""
        for ordinal, part in enumerate(self.parts):
            await adopt_part(connection, part, owner_id=file_id, ordinal=ordinal)
        await add_file(
            connection,
            file_id=file_id,
            project=self.project,
            key_id=key_id,
            purpose=purpose,
            filename=filename,
            parts_of=file_id,
            expires_at=expiry(expires_after_s),
        )
        self.file_id = file_id


def expiry(after_s: int | None) -> Any:
    """The instant, as SQL, at which what is created now expires; None: never."""
    return None if after_s is None else db_now() + float(after_s)
