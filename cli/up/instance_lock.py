"""One `embedmill up` per data directory: a file lock, which the kernel drops however its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cli.data_dir import DataDir
from cli.errors import CliError

TRIES, TRY_EVERY_S = 5, 0.02


@contextmanager
def instance_lock(data_dir: DataDir) -> Iterator[Callable[[str], None]]:
    """Lock the data directory; yields a function that stores our URL in the lock. Raises CliError when it is taken."""
    handle = os.open(data_dir.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for tries_left in reversed(range(TRIES)):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # `is_up_running` of another command holds it for a moment
                if not tries_left:
                    raise CliError(*_already_running(data_dir, os.read(handle, 4096))) from None
                time.sleep(TRY_EVERY_S)

        def note_url(url: str) -> None:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)

        yield note_url
    finally:
        os.close(handle)


def _already_running(data_dir: DataDir, content: bytes) -> tuple[str, str]:
    try:
        holder = json.loads(content)
        return (
            f"embedmill is already running on {data_dir.path}: process {holder['pid']}, {holder['url']}",
            f"use it, stop it with `kill {holder['pid']}`, or choose another --data-dir",
        )
    except (ValueError, KeyError, TypeError):  # it holds the lock, but has not come so far as to write
        return f"embedmill is just starting on {data_dir.path}", "use that one, or choose another --data-dir"
