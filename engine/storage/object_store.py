"""The object store: bytes under keys. One interface; the data directory or an S3-compatible store is behind it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from engine.storage.local_objects import LocalObjects
from engine.storage.s3_objects import FORM, S3Location, S3Objects
from models.errors import ConfigError

SETTING = "EMBEDMILL_OBJECTS_URL"
FORMS = f"file:///PATH or {FORM}"
FOLDER = "objects"


class ObjectStore(Protocol):
    """Objects never change once they are written. Keys are made by us: lower-case letters, digits, `_`, `-` and `/`."""

    # What one `write` keeps in memory at the most.
    buffer_bytes: int

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """Store the chunks as one object, readable once all are durable. Returns its size in bytes.

        Raises ObjectsUnavailable, and what `chunks` raises: nothing is readable then, and `delete` removes the rest.
        """

    def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """The bytes `start..stop` of an object, in pieces of at most 1 MiB.

        Raises ObjectMissing, ObjectsUnavailable.
        """

    async def delete(self, key: str) -> None:
        """Remove an object, and what a broken-off write left of it. A missing one is no error.

        Raises ObjectsUnavailable.
        """

    async def check(self) -> None:
        """Write, read and remove an object of a few bytes. Raises ObjectsUnavailable."""

    async def close(self) -> None:
        """Close connections and threads."""


def open_object_store(url: str, data_dir: Path) -> ObjectStore:
    """The store of this URL; empty: a folder in the data directory. Nothing connects yet. Raises ConfigError."""
    if not url:
        return LocalObjects(data_dir / FOLDER)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and re.match(r"/.", parts.path):
        return LocalObjects(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        return S3Objects(S3Location.of(url, SETTING))
    raise ConfigError(f"{SETTING} must have the form {FORMS}", param=SETTING)
