"""The spool: results that were paid for and that the database cannot take now, in files that outlive this process.

A file is whole or it is nothing: written under another name, synced, renamed, its folder synced, and checked by length
and digest when it is read. Whoever holds its lock works on it; the kernel frees the lock of a process that died, and so
any other process with the same folder may carry on. What is in the files is engine/jobs/replay.py's business.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine import failpoints
from engine.telemetry import SPOOLED

log = logging.getLogger("embedmill.spool")

MAGIC = b"EMSPOOL1"
HEAD = struct.Struct("<8sQ16s")  # magic, length of what follows, its digest
DONE, BAD, UNFINISHED = ".spool", ".bad", ".part"


class DamagedFile(Exception):
    """Cut short, altered, or not ours at all."""


@dataclass(slots=True)
class SpooledFile:
    """A file that this process holds the lock of, and nobody else works on."""

    path: Path
    handle: int

    def read(self) -> bytes:
        """What was written. Raises DamagedFile unless it is that to the byte."""
        with os.fdopen(os.dup(self.handle), "rb") as file:
            file.seek(0)
            head = file.read(HEAD.size)
            body = file.read()
        if len(head) < HEAD.size:
            raise DamagedFile("too short")
        magic, length, digest = HEAD.unpack(head)
        if magic != MAGIC or length != len(body) or digest != _digest(body):
            raise DamagedFile("length or checksum differ")
        return body

    def remove(self) -> None:
        """Its results are in the database."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.let_go()

    def set_aside(self) -> None:
        """Keep it for a person to look at, under a name that nobody replays."""
        SPOOLED.labels("bad").inc()
        with contextlib.suppress(OSError):
            self.path.rename(self.path.with_suffix(BAD))
        self.let_go()

    def let_go(self) -> None:
        """Leave it to any other process."""
        os.close(self.handle)


class Spool:
    """The folder of such files. Nothing is made in it before the first one is needed."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._refused = False

    def write(self, name: str, body: bytes) -> SpooledFile | None:
        """Keep `body` durably; None, with a line in the log, when the disk does not take it."""
        try:
            written = self._write(name, body)
        except OSError as error:  # full, too large a file, read-only
            SPOOLED.labels("refused").inc()
            if not self._refused:
                log.error("paid results are in memory only, the spool does not take them: %s", error.strerror)
            self._refused = True
            return None
        self._refused = False
        SPOOLED.labels("written").inc()
        return written

    def _write(self, name: str, body: bytes) -> SpooledFile:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sum(entry.stat().st_size for entry in os.scandir(self._folder)) + len(body) > self._max_bytes:
            raise OSError(0, "it is full (EMBEDMILL_SPOOL_BYTES)")
        path = self._folder / f"{name}-{secrets.token_hex(4)}{DONE}"
        unfinished = path.with_suffix(UNFINISHED)
        handle = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(handle), "wb") as file:
                file.write(HEAD.pack(MAGIC, len(body), _digest(body)))
                file.write(body[: len(body) // 2])
                file.flush()
                failpoints.hit("during_spool_write")
                file.write(body[len(body) // 2 :])
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
            _sync_folder(self._folder)
        except BaseException:
            for leftover in (unfinished, path):
                leftover.unlink(missing_ok=True)
            os.close(handle)
            raise
        return SpooledFile(path, handle)

    def abandoned(self) -> Iterator[SpooledFile]:
        """The files of processes that died, oldest first. The caller removes each, sets it aside or lets go."""
        for path in self._paths(DONE):
            file = _take(path)
            if file is not None:
                yield file
        for path in self._paths(UNFINISHED):
            file = _take(path)
            if file is not None:
                log.warning("a spool file that was never finished is removed")
                file.remove()

    def _paths(self, suffix: str) -> list[Path]:
        try:
            found = [entry for entry in os.scandir(self._folder) if entry.name.endswith(suffix)]
        except OSError:
            return []
        dated: list[tuple[float, str]] = []
        for entry in found:
            with contextlib.suppress(OSError):  # another process was faster
                dated.append((entry.stat().st_mtime, entry.path))
        return [Path(path) for _, path in sorted(dated)]


def _take(path: Path) -> SpooledFile | None:
    """The file with its lock; None when another process has it, or has just ended it."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between the open and the lock its holder may have removed or renamed it.
        if os.fstat(handle).st_ino == path.stat().st_ino:
            return SpooledFile(path, handle)
    except OSError:
        pass
    os.close(handle)
    return None


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
