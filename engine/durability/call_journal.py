"""Call journal: calls under way, recorded so that they are known after the process was killed.

Each worker process has one small file with a slot for each call: written before the call is sent, cleared once its
outcome is durable. The file is not synced: an entry must survive the process, not the machine, and the kernel keeps
what was written. The process holds the file's lock while it lives; another process that gets the lock reads the entries
of a dead one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import msgspec

log = logging.getLogger("embedmill.calls")

SUFFIX = ".flights"
SLOT_BYTES = 1024
SLOTS = 4096
_LENGTH = struct.Struct("<H")  # 0: a free slot
_FREE = _LENGTH.pack(0)


class InFlightCall(msgspec.Struct, array_like=True):
    """The entry of one call: all that another process needs to write it to the ledger."""

    call_id: str
    project: str
    job_id: str
    shard_id: str
    fence: int
    provider: str
    upstream_model: str
    inputs: int
    started_at: float  # unix seconds
    tokens: int = 0  # estimated
    cost_usd: Decimal = Decimal(0)  # the highest possible cost
    record_id: str = ""  # of the record that will contain its results, once it was answered
    usd_per_million_tokens: Decimal | None = None  # the price that the cost is by; None: unknown


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(InFlightCall).decode


class CallJournal:
    """This process's journal, created with the first entry. A disk error costs entries, never a call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path: Path | None = None
        self._handle: int | None = None
        self._free = list(range(SLOTS - 1, -1, -1))
        self._failed = False

    def begin(self, note: InFlightCall) -> int | None:
        """Write the entry of a call that is about to be sent. Returns its slot; None when it could not be written."""
        written = _encode(note)
        if self._failed or not self._free or len(written) > SLOT_BYTES - _LENGTH.size:
            return None
        slot = self._free.pop()
        try:
            if self._handle is None:
                self._handle = self._make()
            os.pwrite(self._handle, _LENGTH.pack(len(written)) + written, slot * SLOT_BYTES)
        except OSError as error:
            log.error("calls under way are not noted, so a kill would not tell of them: %s", error.strerror)
            self._failed = True
            return None
        return slot

    def renew(self, slot: int | None, note: InFlightCall) -> None:
        """Replace the entry of a call."""
        written = _encode(note)
        if slot is None or self._handle is None or len(written) > SLOT_BYTES - _LENGTH.size:
            return
        with contextlib.suppress(OSError):
            os.pwrite(self._handle, _LENGTH.pack(len(written)) + written, slot * SLOT_BYTES)

    def end(self, slot: int | None) -> None:
        """Clear the entry: the call's outcome is durable, or it was surely not billed."""
        if slot is None or self._handle is None:
            return
        with contextlib.suppress(OSError):
            os.pwrite(self._handle, _FREE, slot * SLOT_BYTES)
        self._free.append(slot)

    def _make(self) -> int:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = self.folder / f"{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}"
        # It gets its final name once it is locked: before, another process could take it for orphaned.
        unlocked = self._path.with_suffix(".part")
        handle = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.rename(self._path)
        except OSError:
            os.close(handle)
            raise
        return handle

    def close(self) -> None:
        """Close the journal, and delete it when no entry is left. Other processes read entries that are left."""
        if self._handle is None or self._path is None:
            return
        if len(self._free) == SLOTS:
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._handle)
        self._handle = None


@dataclass(slots=True)
class OrphanedJournal:
    """The entries of a dead process, locked by this process."""

    notes: list[InFlightCall]
    _path: Path
    _handle: int

    def delete(self) -> None:
        """Delete the journal: its entries are in the database."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        self.unlock()

    def unlock(self) -> None:
        """Leave the journal to other processes."""
        os.close(self._handle)


def orphaned(folder: Path) -> Iterator[OrphanedJournal]:
    """The journals of dead processes. The caller deletes or unlocks each."""
    try:
        paths = [Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(SUFFIX)]
    except OSError:
        return
    for path in paths:
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:  # another process may just have deleted it
                yield OrphanedJournal(list(_notes(handle)), path, handle)
                continue
        except OSError:
            pass  # its process is alive
        os.close(handle)


def _notes(handle: int) -> Iterator[InFlightCall]:
    size = os.fstat(handle).st_size
    for at in range(0, size, SLOT_BYTES):
        slot = os.pread(handle, SLOT_BYTES, at)
        length = _LENGTH.unpack_from(slot)[0] if len(slot) >= _LENGTH.size else 0
        if length:
            try:
                yield _decode(slot[_LENGTH.size : _LENGTH.size + length])
            except msgspec.MsgspecError:
                log.warning("a note of a call under way could not be read")
