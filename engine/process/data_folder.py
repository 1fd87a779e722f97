"""Creates the data directory where it is missing: every part needs it first."""

from __future__ import annotations

from pathlib import Path

from models.errors import ConfigError


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


def _reason(error: OSError) -> str:
    if isinstance(error, NotADirectoryError):
        return "a part of its path is no folder"
    return (error.strerror or str(error)).lower()
