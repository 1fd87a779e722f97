"""Both object stores keep the same promises: the data directory, and an S3-compatible store on a real server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine.storage.object_store import ObjectStore, open_object_store
from engine.storage.s3_objects import SEGMENT_BYTES, S3Objects
from models.errors import ObjectMissing, ObjectsUnavailable
from tests.s3_server import S3Server, s3_server
from tests.waiting import until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["local", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("server")
        # The credentials are the environment's, as in production.
        setter = request.getfixturevalue("monkeypatch")
        for name, value in server.environment.items():
            setter.setenv(name, value)
        return server.url(f"of/{tmp_path.name}")
    return "" if request.param == "local" else f"file://{tmp_path}/some%20where"


@pytest.fixture
async def objects(url: str, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    store = open_object_store(url, tmp_path)
    yield store
    await store.close()


def content(size: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(size)


async def in_chunks(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for low in range(0, len(data), size):
        yield data[low : low + size]


async def read(objects: ObjectStore, key: str, start: int = 0, stop: int | None = None) -> bytes:
    pieces = [piece async for piece in objects.read(key, start, stop)]
    assert all(type(piece) is bytes and 0 < len(piece) <= MIB for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, MIB, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES - 1])
async def test_what_is_written_is_read(objects: ObjectStore, size: int) -> None:
    data = content(size)
    assert await objects.write("parts/ab/one", in_chunks(data)) == size
    assert await read(objects, "parts/ab/one") == data


async def test_any_range_is_read(objects: ObjectStore) -> None:
    data = content(2 * SEGMENT_BYTES + 12_345)
    await objects.write("k", in_chunks(data, 1_000_003))
    edges = [0, 1, MIB - 1, MIB, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, len(data) - 1, len(data)]
    for start in edges:
        assert await read(objects, "k", start) == data[start:]
        for stop in edges:
            assert await read(objects, "k", start, stop) == data[start:stop]


async def test_keys_do_not_touch_each_other(objects: ObjectStore) -> None:
    keys = ["a", "ab", "b/a", "b/ab", "b/a2"]
    await asyncio.gather(*(objects.write(key, in_chunks(key.encode() * 1000)) for key in keys))
    await objects.delete("b/a")
    for key in ("a", "ab", "b/ab", "b/a2"):
        assert await read(objects, key) == key.encode() * 1000
    with pytest.raises(ObjectMissing):
        await read(objects, "b/a")


async def test_a_missing_object_is_deleted_without_an_error(objects: ObjectStore) -> None:
    await objects.delete("never/there")
    await objects.write("k", in_chunks(b"x"))
    await objects.delete("k")
    await objects.delete("k")
    with pytest.raises(ObjectMissing):
        await read(objects, "k")


class Broken(Exception):
    pass


@pytest.mark.parametrize("sent", [0, 1, 2 * MIB, 2 * SEGMENT_BYTES + 1])
async def test_a_write_that_breaks_off_is_not_readable_and_can_be_removed(
    objects: ObjectStore, sent: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        async for chunk in in_chunks(content(sent)):
            yield chunk
        raise Broken

    with pytest.raises(Broken):
        await objects.write("k", chunks())
    with pytest.raises(ObjectMissing):
        await read(objects, "k")
    await objects.delete("k")
    assert left(objects, request, tmp_path) == []


@pytest.mark.parametrize("sent", [0, 2 * MIB, 2 * SEGMENT_BYTES + 1])
async def test_a_write_that_is_cancelled_is_not_readable_and_can_be_removed(
    objects: ObjectStore, sent: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    is_waiting = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        async for chunk in in_chunks(content(sent)):
            yield chunk
        is_waiting.set()
        await asyncio.Event().wait()

    write = asyncio.create_task(objects.write("k", chunks()))
    await is_waiting.wait()
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    with pytest.raises(ObjectMissing):
        await read(objects, "k")
    await objects.delete("k")
    assert left(objects, request, tmp_path) == []


async def test_a_write_is_not_readable_before_its_end(objects: ObjectStore) -> None:
    goes_on, is_waiting = asyncio.Event(), asyncio.Event()
    data = content(2 * SEGMENT_BYTES + 1)

    async def chunks() -> AsyncIterator[bytes]:
        async for chunk in in_chunks(data):
            yield chunk
        is_waiting.set()
        await goes_on.wait()

    write = asyncio.create_task(objects.write("k", chunks()))
    await is_waiting.wait()
    with pytest.raises(ObjectMissing):
        await read(objects, "k")
    goes_on.set()
    await write
    assert await read(objects, "k") == data


async def test_the_check_leaves_nothing(objects: ObjectStore, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    await objects.check()
    assert left(objects, request, tmp_path) == []


def left(objects: ObjectStore, request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """What is in the store."""
    if isinstance(objects, S3Objects):
        server: S3Server = request.getfixturevalue("server")
        return [key for key in server.all_keys() if key.startswith(f"of/{tmp_path.name}/")]
    return [str(path) for path in tmp_path.rglob("*") if path.is_file()]


async def refusal(objects: ObjectStore) -> ObjectsUnavailable:
    """The error that every use of the store ends with."""
    found = []
    for use in (objects.write("k", in_chunks(b"x")), read(objects, "k"), objects.delete("k"), objects.check()):
        with pytest.raises(ObjectsUnavailable) as caught:
            await use
        found.append(caught.value)
    assert len({(error.message, error.advice) for error in found}) == 1
    return found[0]


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ("unknown key", "AWS_ACCESS_KEY_ID"),
        ("wrong secret", "AWS_SECRET_ACCESS_KEY"),
        ("no bucket", "make it"),
        ("nobody listens", "no answer"),
    ],
)
async def test_an_s3_store_that_cannot_be_used_says_why(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, advice: str
) -> None:
    environment = dict(server.environment)
    environment |= {"unknown key": {"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}}.get(fault, {})
    environment |= {"wrong secret": {"AWS_SECRET_ACCESS_KEY": "wrong"}}.get(fault, {})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = server.url(bucket="no-such-bucket" if fault == "no bucket" else None)
    if fault == "nobody listens":
        url = url.replace(server.endpoint, "http://127.0.0.1:9")
    objects = open_object_store(url, tmp_path)
    error = await refusal(objects)
    assert advice in error.advice
    shown = error.message + error.advice
    assert server.secret_access_key not in shown and server.access_key_id not in shown and "http" not in shown
    await objects.close()


async def test_an_s3_server_that_dies_within_a_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        objects = open_object_store(server.url(), tmp_path)

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in in_chunks(content(2 * SEGMENT_BYTES)):
                yield chunk
            await until(lambda: asyncio.to_thread(server.all_keys), what="the first segment")
            server.close()
            async for chunk in in_chunks(content(2 * SEGMENT_BYTES)):
                yield chunk

        with pytest.raises(ObjectsUnavailable):
            await objects.write("k", chunks())
        await objects.close()


@pytest.mark.parametrize("obstacle", ["file", "link"])
async def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "objects"
    if obstacle == "file":
        folder.write_text("in the way")
    else:
        folder.symlink_to("/proc/self/nowhere")
    objects = open_object_store("", tmp_path)
    with pytest.raises(ObjectsUnavailable) as caught:
        await objects.check()
    assert str(folder) in caught.value.advice
    await objects.close()
