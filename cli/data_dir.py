"""The data directory, in which `embedmill up` keeps its URL, key and lock for the other commands."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engine.process.data_folder import LOCK_NAME, make_data_folder

DEFAULT_DATA_DIR = Path(".embedmill")


@dataclass(frozen=True, slots=True)
class DataDir:
    """The files that processes on one machine share. Everything in it is private to its owner."""

    path: Path

    @classmethod
    def from_environment(cls) -> DataDir:
        """EMBEDMILL_DATA_DIR, else `.embedmill` in the current directory."""
        return cls(Path(os.environ.get("EMBEDMILL_DATA_DIR") or DEFAULT_DATA_DIR))

    @property
    def key_file(self) -> Path:
        """The key that `embedmill up` created at its first start."""
        return self.path / "key"

    @property
    def url_file(self) -> Path:
        """The URL of the server that `embedmill up` runs."""
        return self.path / "url"

    @property
    def redis_url_file(self) -> Path:
        """The URL of the embedded Valkey."""
        return self.path / "redis_url"

    @property
    def lock_file(self) -> Path:
        """Held by the running `embedmill up`."""
        return self.path / LOCK_NAME

    @property
    def valkey_dir(self) -> Path:
        """Files of the embedded Valkey."""
        return self.path / "valkey"

    @property
    def log_dir(self) -> Path:
        """Output of the child processes of `up --quiet`."""
        return self.path / "logs"

    def make(self) -> None:
        """Create the directory, readable by its owner only. Raises ConfigError."""
        make_data_folder(self.path)
        self.path.chmod(0o700)

    def url(self) -> str | None:
        """The server's URL; None when there is none."""
        return read_line(self.url_file)

    def key(self) -> str | None:
        """The first key; None when there is none."""
        return read_line(self.key_file)


def read_line(path: Path) -> str | None:
    """The stripped text of a small file; None when it is missing or empty."""
    try:
        return path.read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None


def write_private(path: Path, text: str) -> None:
    """Replace a file by one with this text and mode 0600: no reader sees half of it, no other user any of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    with contextlib.ExitStack() as undo:
        undo.callback(Path(temporary).unlink)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
        undo.pop_all()
