"""Where files are stored: what a verb on files needs of its process."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config.settings import Settings
from engine.storage.database import Database
from engine.storage.object_store import ObjectStore


@dataclass(frozen=True, slots=True)
class FileStore:
    """The database with the rows of files, the settings of the process, and the store with the bytes."""

    database: Database
    settings: Settings
    objects: ObjectStore
