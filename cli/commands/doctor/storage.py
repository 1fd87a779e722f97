"""The doctor's checks of the database, of the object store, and of the secret that API keys are hashed with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from cli.commands.doctor.finding import Finding
from cli.redaction import redact_url
from engine.access.keys import load_pepper
from engine.config.settings import Settings
from engine.storage.database import Database, schema_revision
from engine.storage.object_store import open_object_store
from models.errors import EmbedmillError, ObjectsUnavailable

T = TypeVar("T")
DATABASE_FIX = "is EMBEDMILL_DATABASE_URL right?"


def database(settings: Settings) -> Finding:
    """Whether the database answers, can be written, and is at this version's revision."""
    url = settings.sqlalchemy_url
    shown_url = redact_url(url)
    if url.startswith("sqlite") and not Path(url.split("///", 1)[-1]).is_file():
        return Finding("database", "warn", f"{shown_url} does not exist yet", "`embedmill up` makes it")

    async def revisions() -> tuple[str | None, str]:
        connection = Database(url)
        try:
            current_and_head = await schema_revision(connection)
            if current_and_head[0] == current_and_head[1]:
                await connection.ping()  # one that can be read may still refuse to write
            return current_and_head
        finally:
            await connection.close()

    try:
        current, expected = asyncio.run(revisions())
    except EmbedmillError as error:
        return Finding(
            "database", "fail", f"{shown_url}: {error.message}", getattr(error, "advice", "") or DATABASE_FIX
        )
    if current != expected:
        return Finding(
            "database", "fail", f"{shown_url} is at revision {current}, not {expected}", "run `embedmill migrate`"
        )
    return Finding("database", "ok", f"{shown_url} at revision {current}")


def objects(settings: Settings) -> Finding:
    """Whether files can be stored: a few bytes are written, read and removed."""
    shown = redact_url(settings.objects_url) if settings.objects_url else "in the data directory"
    if not settings.objects_url and not settings.data_dir.is_dir():
        return Finding("objects", "warn", "the data directory does not exist yet", "`embedmill up` makes it")

    async def check() -> None:
        store = open_object_store(settings.objects_url, settings.data_dir)
        try:
            await store.check()
        finally:
            await store.close()

    try:
        asyncio.run(check())
    except ObjectsUnavailable as error:
        return Finding("objects", "fail", f"{shown}: {error.message}", error.advice)
    return Finding("objects", "ok", f"{shown}: written, read and removed")


def pepper(settings: Settings) -> Finding:
    """The secret that keys are hashed under, as the API reads it; looking makes none."""
    if not settings.key_pepper and not (settings.data_dir / "pepper").exists():
        return Finding("pepper", "warn", "none is made yet", "`embedmill up` makes one; keep it when you move the data")
    try:
        load_pepper(settings.key_pepper, settings.data_dir)
    except EmbedmillError as error:
        return Finding("pepper", "fail", error.message, "without it no key is taken, and the API does not start")
    return Finding("pepper", "ok", "of EMBEDMILL_KEY_PEPPER" if settings.key_pepper else "in the data directory")


async def with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the configured database, and close it again."""
    connection = Database(settings.sqlalchemy_url)
    try:
        return await work(connection)
    finally:
        await connection.close()
