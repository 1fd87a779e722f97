"""Files on both databases: parts and their leases, purge, and what it must keep."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from engine.config.settings import Settings
from engine.files import parts
from engine.files.file_store import FileStore
from engine.files.parts import PART_BYTES, PURGE
from engine.files.purge import purge_files
from engine.files.read import delete_file, get_file, list_files, read_file
from engine.files.write import receive_file, store_file
from engine.storage.local_objects import LocalObjects
from models.base import db_now
from models.batch import JobStep
from models.errors import CapacityError, ObjectsUnavailable, PayloadTooLarge, UploadInterrupted
from models.file import File, FilePart, new_file_id
from models.file_errors import FileNotFound
from models.job import Job
from tests.integration.store import Store
from tests.waiting import until


@pytest.fixture
async def files(store: Store, tmp_path: Path) -> AsyncIterator[FileStore]:
    objects = LocalObjects(tmp_path / "objects")
    yield FileStore(store.database, Settings(data_dir=tmp_path, lease_s=60.0), objects)
    await objects.close()


def objects(files: FileStore) -> list[str]:
    folder = files.settings.data_dir / "objects"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def rows(files: FileStore, table: Any) -> list[Any]:
    async with files.database.read() as connection:
        return list((await connection.execute(select(*table.__table__.columns))).all())


async def change(files: FileStore, table: Any, **values: Any) -> None:
    async with files.database.write() as connection:
        await connection.execute(update(table).values(values))


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def stored(files: FileStore, *pieces: bytes, project: str = "p", **options: Any) -> Any:
    defaults: dict[str, Any] = {"purpose": "user_data", "max_bytes": 10**9, "expires_after_s": None}
    options = defaults | options
    return await store_file(files, project=project, key_id="k", filename="x", chunks=chunks(*pieces), **options)


async def content(files: FileStore, file_id: str, *span: int) -> bytes:
    return b"".join([piece async for piece in read_file(files, file_id, *span)])


async def test_a_file_larger_than_a_part_is_read_whole_and_by_ranges(files: FileStore) -> None:
    data = random.Random(3).randbytes(1_000_003) * 135  # more than two parts
    file = await stored(files, *(data[low : low + 999_999] for low in range(0, len(data), 999_999)))
    sizes = sorted((part.ordinal, part.bytes) for part in await rows(files, FilePart))
    assert sizes == [(0, PART_BYTES), (1, PART_BYTES), (2, len(data) - 2 * PART_BYTES)]
    assert file.bytes == len(data)
    assert await content(files, file.id) == data
    for edge in (PART_BYTES, 2 * PART_BYTES):
        assert await content(files, file.id, edge - 3, edge + 3) == data[edge - 3 : edge + 3]
    assert await content(files, file.id, len(data) - 1) == data[-1:]
    assert await content(files, file.id, len(data)) == b""


async def test_a_file_that_is_too_large_leaves_nothing(files: FileStore) -> None:
    with pytest.raises(PayloadTooLarge):
        await stored(files, *[b"x" * 1_000_000] * 80, max_bytes=70_000_000)  # a whole part is stored by then
    assert (objects(files), await rows(files, FilePart), await rows(files, File)) == ([], [], [])


async def test_a_caller_that_fails_leaves_nothing(files: FileStore) -> None:
    with pytest.raises(RuntimeError):
        async with receive_file(files, "p", chunks(b"abc"), max_bytes=100) as received:
            assert received.bytes == 3
            raise RuntimeError
    assert (objects(files), await rows(files, FilePart)) == ([], [])


async def test_a_transaction_that_fails_leaves_nothing(files: FileStore) -> None:
    with pytest.raises(RuntimeError):
        async with (
            receive_file(files, "p", chunks(b"abc"), max_bytes=100) as received,
            files.database.write() as connection,
        ):
            await received.add(
                connection, file_id=new_file_id(), key_id="k", purpose="batch", filename="x", expires_after_s=None
            )
            raise RuntimeError
    assert (objects(files), await rows(files, FilePart), await rows(files, File)) == ([], [], [])


async def test_parts_that_nobody_adopts_are_purged_once_their_lease_is_over(files: FileStore) -> None:
    part = await parts.write_part(files, "p", chunks(b"abc"))
    await purge_files(files)
    assert objects(files) == [part.id]
    await change(files, FilePart, lease_until=1.0)
    with pytest.raises(UploadInterrupted):  # after purge has taken it; before, it may still be adopted
        await purge_files(files)
        async with files.database.write() as connection:
            await parts.adopt_part(connection, part, owner_id="b:output", ordinal=0)
    assert (objects(files), await rows(files, FilePart)) == ([], [])


async def test_a_part_that_was_adopted_in_time_stays_whatever_its_lease_was(files: FileStore) -> None:
    part = await parts.write_part(files, "p", chunks(b"abc"))
    await change(files, FilePart, lease_until=1.0)
    async with files.database.write() as connection:
        await parts.adopt_part(connection, part, owner_id="b:output", ordinal=0)
    await purge_files(files)
    assert objects(files) == [part.id]
    with pytest.raises(UploadInterrupted):  # it has an owner already
        async with files.database.write() as connection:
            await parts.adopt_part(connection, part, owner_id="other", ordinal=0)


async def test_a_part_that_is_being_written_keeps_its_lease(files: FileStore, store: Store) -> None:
    quick = FileStore(files.database, Settings(data_dir=files.settings.data_dir, lease_s=0.4), files.objects)
    goes_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"abc"
        await goes_on.wait()

    write = asyncio.create_task(parts.write_part(quick, "p", slowly()))
    await until(lambda: objects(quick), what="a part that is being written")
    begun = (await rows(quick, FilePart))[0].lease_until

    async def was_renewed_thrice() -> bool:
        await purge_files(quick)
        return bool((await rows(quick, FilePart))[0].lease_until > begun + 0.3)

    await until(was_renewed_thrice, what="renewals of the lease")
    goes_on.set()
    assert (await write).bytes == 3


async def test_a_writer_that_stood_still_for_too_long_is_told_and_leaves_nothing(files: FileStore) -> None:
    async def beyond_its_lease() -> AsyncIterator[bytes]:
        yield b"x" * 3_000_000
        await change(files, FilePart, lease_until=1.0)
        await purge_files(files)
        yield b"x" * 3_000_000

    with pytest.raises(CapacityError):
        await parts.write_part(files, "p", beyond_its_lease())
    assert (objects(files), await rows(files, FilePart)) == ([], [])


async def test_outputs_are_collected_in_order_and_disowned_parts_go(files: FileStore) -> None:
    written = [await parts.write_part(files, "p", chunks(data)) for data in (b"2", b"0", b"1", b"e")]
    async with files.database.write() as connection:
        for part, ordinal in zip(written, (2, 0, 1), strict=False):
            await parts.adopt_part(connection, part, owner_id="batch_1:output", ordinal=ordinal)
        await parts.adopt_part(connection, written[3], owner_id="batch_1:error", ordinal=0)
    file_id = new_file_id()
    async with files.database.write() as connection:
        size = await parts.add_file(
            connection,
            file_id=file_id,
            project="p",
            key_id="k",
            purpose="batch_output",
            filename="o",
            parts_of="batch_1:output",
            expires_at=None,
        )
        await parts.disown_parts(connection, "batch_1:error")
    assert (size, await content(files, file_id)) == (3, b"012")
    await purge_files(files)
    assert len(objects(files)) == 3
    assert {part.owner_id for part in await rows(files, FilePart)} == {file_id}


async def test_what_has_expired_is_gone_at_once_and_then_from_the_store(files: FileStore) -> None:
    kept = await stored(files, b"kept", expires_after_s=3600)
    gone = await stored(files, b"gone", expires_after_s=3600)
    async with files.database.write() as connection:
        await connection.execute(update(File).where(File.id == gone.id).values(expires_at=db_now() - 1))
    with pytest.raises(FileNotFound):
        await get_file(files, "p", gone.id)
    assert [row.id for row in (await list_files(files, "p", limit=10))[0]] == [kept.id]
    await purge_files(files)
    assert [row.id for row in await rows(files, File)] == [kept.id]
    assert len(objects(files)) == 1


async def test_a_file_that_a_job_still_reads_is_kept_though_nobody_sees_it(files: FileStore, store: Store) -> None:
    file = await stored(files, b"line")
    job_id = await store.submit(1)
    async with files.database.write() as connection:
        await connection.execute(update(Job).where(Job.id == job_id).values(input_file_id=file.id))
        await connection.execute(
            insert(JobStep).values(job_id=job_id, project="p", kind="ingest", due_at=0.0, fence=0, attempts=0)
        )
    await delete_file(files, "p", file.id)
    with pytest.raises(FileNotFound):
        await get_file(files, "p", file.id)
    await purge_files(files)
    assert await content(files, file.id) == b"line"
    async with files.database.write() as connection:
        await connection.execute(delete(JobStep))
    await purge_files(files)
    assert (objects(files), await rows(files, File)) == ([], [])
    with pytest.raises(FileNotFound):
        await content(files, file.id)


class AwayObjects(LocalObjects):
    """A store that is away for as long as `is_away` says."""

    is_away = False

    async def delete(self, key: str) -> None:
        if self.is_away:
            raise ObjectsUnavailable("The object store cannot be used. Try again later.")
        await super().delete(key)


async def test_a_purge_without_its_object_store_is_done_later(files: FileStore) -> None:
    away = AwayObjects(files.settings.data_dir / "objects")
    store = FileStore(files.database, files.settings, away)
    file = await stored(store, b"abc")
    await delete_file(store, "p", file.id)
    away.is_away = True
    await purge_files(store)  # raises nothing: the sweep has other duties
    assert len(objects(store)) == 1 and [part.owner_id for part in await rows(store, FilePart)] == [PURGE]
    away.is_away = False
    await purge_files(store)
    assert (objects(store), await rows(store, FilePart)) == ([], [])
    await away.close()


class SilentObjects(LocalObjects):
    """A store that answers no `delete` of these keys."""

    silent: frozenset[str] = frozenset()

    async def delete(self, key: str) -> None:
        if key in self.silent:
            await asyncio.Event().wait()
        await super().delete(key)


async def test_a_purge_does_not_wait_for_an_object_store_that_does_not_answer(files: FileStore) -> None:
    silent = SilentObjects(files.settings.data_dir / "objects")
    store = FileStore(files.database, files.settings, silent)
    for _ in range(2):
        await delete_file(store, "p", (await stored(store, b"abc")).id)
    [kept, _] = [part.id for part in await rows(store, FilePart)]
    silent.silent = frozenset({parts.object_key(kept)})
    async with asyncio.timeout(10.0):
        await purge_files(store, answer_s=0.2)
    assert ([part.id for part in await rows(store, FilePart)], objects(store)) == ([kept], [kept])
    silent.silent = frozenset()
    await purge_files(store)
    assert (objects(store), await rows(store, FilePart)) == ([], [])
    await silent.close()
