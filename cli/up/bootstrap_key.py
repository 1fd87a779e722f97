"""The key that a new user starts with."""

from __future__ import annotations

import asyncio

from cli.data_dir import DataDir, write_private
from engine.access.keys import create_key, list_keys, load_pepper
from engine.config.settings import Settings
from engine.storage.database import Database
from models.key import Scope


def create_bootstrap_key(settings: Settings, data_dir: DataDir) -> str | None:
    """Make a key with every scope in project `default`, and keep it in the data directory; None where keys exist."""

    async def create() -> str | None:
        database = Database(settings.sqlalchemy_url)
        try:
            if await list_keys(database):
                return None
            pepper = load_pepper(settings.key_pepper, settings.data_dir)
            _, key = await create_key(database, pepper, project="default", name="first key", scopes=list(Scope))
            return key
        finally:
            await database.close()

    key = asyncio.run(create())
    if key is not None:
        write_private(data_dir.key_file, key + "\n")
    return key
