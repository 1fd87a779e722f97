"""Where jobs are stored, and the settings by which they are worked on: what a verb on jobs needs of its process."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config.settings import Settings
from engine.storage.database import Database


@dataclass(frozen=True, slots=True)
class JobStore:
    """The database with the jobs, and the settings of the process."""

    database: Database
    settings: Settings
