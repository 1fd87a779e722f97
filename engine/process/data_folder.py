"""Creates the data directory where it is missing: every part needs it first."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from models.errors import ConfigError

LOCK_NAME = "lock"


def make_data_folder(path: Path) -> None:
    """Make the folder, readable by its owner only; one that is there stays as it is. Raises ConfigError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        what = "is no folder" if isinstance(error, FileExistsError) else "cannot be made"
        reason = "a file stands there" if isinstance(error, FileExistsError) else _reason(error)
        raise ConfigError(
            f"the data directory {path.absolute()} {what}: {reason}; set EMBEDMILL_DATA_DIR to a folder that can be "
            "made and written",
            param="EMBEDMILL_DATA_DIR",
        ) from error


def is_up_running(path: Path) -> bool:
    """True while an `embedmill up` holds the folder: the kernel drops its lock however it ends, kill -9 included."""
    try:
        handle = os.open(path / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:  # another user's: nobody can tell
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _reason(error: OSError) -> str:
    if isinstance(error, NotADirectoryError):
        return "a part of its path is no folder"
    return (error.strerror or str(error)).lower()
