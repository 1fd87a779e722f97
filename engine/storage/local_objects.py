"""Objects as files of a folder: the default store, for processes that share a disk."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from models.base import random_id
from models.errors import ObjectMissing, ObjectsUnavailable

T = TypeVar("T")
PIECE_BYTES = 1024 * 1024
THREADS = 4
PARTIAL_SUFFIX = ".partial"


class LocalObjects:
    """A store in `folder`. Threads do the input and output, so that a slow disk stops no event loop."""

    buffer_bytes = PIECE_BYTES

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Two pools: whoever writes much makes no reader wait for a disk that is busy with fsync.
        self._readers: ThreadPoolExecutor | None = None
        self._writers: ThreadPoolExecutor | None = None

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """See ObjectStore. The bytes are in a file of another name until they are all on the disk."""
        file = _PartialFile(self._folder / key)
        is_written = False
        try:
            await self._run(file.create)
            size, pieces, held_bytes = 0, [], 0
            async for chunk in chunks:
                pieces.append(chunk)
                held_bytes += len(chunk)
                if held_bytes >= PIECE_BYTES:
                    await self._run(partial(file.append, pieces))
                    size, pieces, held_bytes = size + held_bytes, [], 0
            await self._run(partial(file.append, pieces))
            await self._run(file.finish)
            is_written = True
        finally:
            if not is_written:
                await self._run(file.discard)
        return size + held_bytes

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """See ObjectStore. The file is opened for each piece: a reader that pauses keeps nothing open."""
        position = start
        while stop is None or position < stop:
            size = PIECE_BYTES if stop is None else min(PIECE_BYTES, stop - position)
            piece = await self._run_reader(partial(_read, self._folder / key, position, size))
            if not piece:
                break
            yield piece
            position += len(piece)

    async def delete(self, key: str) -> None:
        """See ObjectStore."""
        await self._run(partial(_remove, self._folder / key))

    async def check(self) -> None:
        """See ObjectStore."""
        key = random_id("check")
        await self.write(key, _one(b"embedmill"))
        async for _ in self.read(key):
            pass
        await self.delete(key)

    async def close(self) -> None:
        """Stop the threads; steps that have not begun are cancelled."""
        for threads in (self._readers, self._writers):
            if threads is not None:
                threads.shutdown(wait=False, cancel_futures=True)

    # The threads are not made before they are used: a process may fork first.

    async def _run(self, step: Callable[[], T]) -> T:
        self._writers = self._writers or ThreadPoolExecutor(THREADS, thread_name_prefix="objects-write")
        return await self._run_in(self._writers, step)

    async def _run_reader(self, step: Callable[[], T]) -> T:
        self._readers = self._readers or ThreadPoolExecutor(THREADS, thread_name_prefix="objects-read")
        return await self._run_in(self._readers, step)

    async def _run_in(self, threads: ThreadPoolExecutor, step: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, step)
        except FileNotFoundError as error:
            raise ObjectMissing("an object is not in the object store: it was removed, or is lost") from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ObjectsUnavailable(
                f"The object store cannot be used: {reason}. Try again later.",
                advice=f"look at the disk, the owner and the mode of {self._folder.absolute()}",
            ) from error


class _PartialFile:
    """A file that is being written under another name. Its steps run in threads, one at a time, also after a cancel."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._lock = threading.Lock()
        self._handle = -1

    def create(self) -> None:
        """Create it, and its folder."""
        with self._lock:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def append(self, pieces: list[bytes]) -> None:
        """Write at its end."""
        with self._lock:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self._handle, rest) :]

    def finish(self) -> None:
        """Make it durable, then give it its name."""
        with self._lock:
            os.fsync(self._handle)
            try:
                self._partial.rename(self._path)
            except FileNotFoundError as error:  # deleted by another process, which took this one for dead
                raise ObjectsUnavailable("An object was removed while it was written. Try again.") from error
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._close()

    def discard(self) -> None:
        """Remove it, under both names: a step that was cancelled may have gone on to its end."""
        with self._lock:
            self._close()
            _remove(self._path)

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _read(path: Path, position: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(position)
        return file.read(size)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + PARTIAL_SUFFIX).unlink(missing_ok=True)


async def _one(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk
