"""Connections to PostgreSQL, directly or through a pooler such as PgBouncer in session or transaction mode.

A pooler is known by its number: it announces another server process than the one that answers. Behind one nothing may
outlive a transaction: statements stay unnamed, settings are LOCAL, and reads run in transactions too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from engine.connections import urls

CONNECT_TIMEOUT_S = 10.0
# A process that is frozen, or whose machine is cut off, in the middle of a transaction keeps its locks: not for long.
SETTINGS: Mapping[str, str] = {
    "statement_timeout": "60000",
    "lock_timeout": "20000",
    "idle_in_transaction_session_timeout": "10000",
}
POOLED = "embedmill_pooled"
# What a statement on an open connection raises. The dialect wraps most of it, not all, and only in its own root.
DRIVER_ERRORS = (
    AsyncAdapt_asyncpg_dbapi.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


def create_engine(url: str, settings: Mapping[str, str] = SETTINGS, **options: Any) -> AsyncEngine:
    """An engine for the URL, with these settings in each session. Raises ConfigError for a URL that cannot be used."""
    target = urls.postgres(url)
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=partial(_connect, target), hide_parameters=True, **options
    )
    # What the URL's own `options` say wins.
    session_settings = {**settings, **target.session}
    event.listen(engine.sync_engine, "connect", partial(_prepare, session_settings))
    event.listen(engine.sync_engine, "begin", partial(_set_locally, session_settings))
    return engine


def is_pooled(connection: Connection) -> bool:
    """True when a pooler stands between this connection and the server."""
    return bool(connection.info.get(POOLED))


async def _connect(target: urls.PostgresTarget, *_: Any, **__: Any) -> Any:
    startup = {"application_name": target.application_name}
    if target.startup_options:
        startup["options"] = target.startup_options
    # asyncpg's own cache would name statements, and a pooler hands them to other sessions.
    return await asyncpg.connect(
        target.dsn, timeout=target.timeout_s or CONNECT_TIMEOUT_S, statement_cache_size=0, server_settings=startup
    )


def _prepare(settings: Mapping[str, str], connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[POOLED] = connection.run_async(partial(_set_up, settings))
    if record.info[POOLED]:
        connection._prepared_statement_cache = None
        connection._prepared_statement_name_func = str


async def _set_up(settings: Mapping[str, str], connection: Any) -> bool:
    async with connection.transaction():  # or a pooler may answer the two halves of the question from two servers
        answering_pid = await connection.fetchval("select pg_backend_pid()")
    pooled = bool(answering_pid != connection.get_server_pid())
    if settings and not pooled:
        await connection.execute(_statement(settings, local=False))
    return pooled


def _set_locally(settings: Mapping[str, str], connection: Connection) -> None:
    if settings and is_pooled(connection):
        connection.exec_driver_sql(_statement(settings, local=True))


def _statement(settings: Mapping[str, str], *, local: bool) -> str:
    calls = (f"set_config({_quoted(name)}, {_quoted(value)}, {str(local).lower()})" for name, value in settings.items())
    return "select " + ", ".join(calls)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
