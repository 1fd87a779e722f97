"""Spool: files for paid results that the database cannot store now. They outlive this process.

A file is complete or absent: written under another name, synced, renamed, its folder synced, and checked by length and
digest when it is read. The process that holds its lock works on it; the kernel frees the lock of a dead process, so any
other process with the same folder can take over. The content of files: engine/jobs/recording/spool_replay.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.observability import failpoints
from engine.observability.telemetry import SPOOLED

log = logging.getLogger("embedmill.spool")

# A file of this size reserves disk space for results. It is deleted when the disk is full.
RESERVE, RESERVE_BYTES = "reserve", 32 * 1024 * 1024
LOW_BYTES = 512 * 1024 * 1024
NEARLY_FULL = 0.8

MAGIC = b"EMSPOOL1"
HEAD = struct.Struct("<8sQ16s")  # magic, length of what follows, its digest
SUFFIX_DONE, SUFFIX_BAD, SUFFIX_UNFINISHED = ".spool", ".bad", ".part"


class DamagedFile(Exception):
    """The file is truncated, altered, or not a spool file. Raised by SpooledFile.read."""


@dataclass(slots=True)
class SpooledFile:
    """A file locked by this process."""

    path: Path
    handle: int

    def read(self) -> bytes:
        """The content. Raises DamagedFile when it is not exactly what was written."""
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
        """Delete the file: its results are in the database."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.unlock()

    def quarantine(self) -> None:
        """Keep the file for an operator, under a name that is not replayed."""
        SPOOLED.labels("bad").inc()
        with contextlib.suppress(OSError):
            self.path.rename(self.path.with_suffix(SUFFIX_BAD))
        self.unlock()

    def unlock(self) -> None:
        """Leave the file to other processes."""
        os.close(self.handle)


class Spool:
    """The folder of spool files, created with the first one."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._refused = False
        self._nearly_full = False

    def write(self, name: str, body: bytes) -> SpooledFile | None:
        """Store `body` durably. Returns None, and logs, when the disk refuses it."""
        try:
            try:
                written = self._write(name, body)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._release_reserve():
                    raise
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

    def reserve(self) -> None:
        """Reserve disk space for results, and warn while little is left. Called regularly by a background loop."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
            path = self._folder / RESERVE
            if not path.exists() and free > 2 * RESERVE_BYTES:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    os.posix_fallocate(handle, 0, RESERVE_BYTES)
                finally:
                    os.close(handle)
        except OSError as error:
            self._warn(f"no room can be reserved for paid results in {self._folder}: {error.strerror}")
            return
        used_bytes = self._used_bytes()
        if used_bytes > NEARLY_FULL * self._max_bytes:
            self._warn(f"the spool has {used_bytes} of its {self._max_bytes} bytes (EMBEDMILL_SPOOL_MAX_BYTES)")
        elif free < LOW_BYTES:
            self._warn(f"only {free // 2**20} MiB are free in {self._folder}: free some, or paid results may be lost")
        else:
            self._nearly_full = False

    def _warn(self, message: str) -> None:
        if not self._nearly_full:
            log.warning("%s", message)
        self._nearly_full = True

    def _release_reserve(self) -> bool:
        try:
            (self._folder / RESERVE).unlink()
        except OSError:
            return False
        log.warning("the disk is full: the room that was reserved for paid results is used now")
        return True

    def _used_bytes(self) -> int:
        total = 0
        for entry in os.scandir(self._folder):
            if entry.name != RESERVE:
                with contextlib.suppress(FileNotFoundError):  # another process has just recorded and removed it
                    total += entry.stat().st_size
        return total

    def _check_room(self, body_bytes: int) -> None:
        if self._used_bytes() + body_bytes > self._max_bytes:
            raise OSError(0, "it is full (EMBEDMILL_SPOOL_MAX_BYTES)")

    def _write(self, name: str, body: bytes) -> SpooledFile:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_room(len(body))
        path = self._folder / f"{name}-{secrets.token_hex(4)}{SUFFIX_DONE}"
        unfinished = path.with_suffix(SUFFIX_UNFINISHED)
        with contextlib.ExitStack() as undo:  # until the whole file is on the disk
            handle = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            undo.callback(os.close, handle)
            for leftover in (unfinished, path):
                undo.callback(leftover.unlink, missing_ok=True)
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
            undo.pop_all()
        return SpooledFile(path, handle)

    def names(self) -> list[str]:
        """The names of finished files."""
        return [path.name for path in self._paths(SUFFIX_DONE)]

    def orphaned(self) -> Iterator[SpooledFile]:
        """The files of dead processes, oldest first. The caller removes, quarantines or unlocks each."""
        for path in self._paths(SUFFIX_DONE):
            file = _try_lock(path)
            if file is not None:
                yield file
        for path in self._paths(SUFFIX_UNFINISHED):
            file = _try_lock(path)
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


def _try_lock(path: Path) -> SpooledFile | None:
    """The file, locked; None when another process holds the lock or has just deleted the file."""
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
