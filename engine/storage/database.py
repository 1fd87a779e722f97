"""Connections, transactions, and what differs between the two databases.

Reads run in autocommit mode (one round trip, no BEGIN and ROLLBACK around it). Writes run in a real transaction; on
SQLite that is BEGIN IMMEDIATE through a single connection, so that two writers of a process queue here, in order,
rather than in SQLite's sleeping busy handler, and no reader is ever upgraded into a deadlock.
"""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Insert, TableValuedAlias, cast, column, event, false, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only

from engine.storage import postgres, sqlite_cursor
from engine.storage.sqlstates import meaning_of, translated
from models.errors import StorageRefused, StorageUnavailable
from models.worker import WorkerProcess

# What a loop survives: all that `read` and `write` raise because of the database.
DATABASE_ERRORS = (StorageUnavailable, StorageRefused, SQLAlchemyError)
MIGRATIONS = Path(__file__).resolve().parents[2] / "alembic"
BUSY_TIMEOUT_S = 30.0
# SQLite shortens its log by itself, but only in a moment without a reader, and on a busy machine there may be none.
WAL_TRUNCATE_BYTES = 256 * 1024 * 1024
CHECKPOINT_WAIT_S = 1.0
# A connection that was idle for longer is tested before it is used.
PING_AFTER_IDLE_S = 2.0
PROBE_BUSY_TIMEOUT_S = 1.0
OPEN_RETRY_S, OPEN_RETRY_EVERY_S = 5.0, 0.02


class Database:
    """A database, opened lazily: nothing connects before the first statement, so it can be created before a fork."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.url = url
        self._is_pooled: bool | None = None  # not known before the first connection
        self.is_sqlite = url.startswith("sqlite")
        self.sqlite_path = make_url(url).database if self.is_sqlite else None
        self._reads: AsyncEngine
        self._writes: AsyncEngine
        if self.is_sqlite:
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S, "isolation_level": None}}
            options["hide_parameters"] = True
            self._reads = create_async_engine(
                url, pool_size=pool_size, max_overflow=0, pool_reset_on_return=None, **options
            )
            self._writes = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=BUSY_TIMEOUT_S, **options)
            for engine in (self._reads, self._writes):
                event.listen(engine.sync_engine, "do_connect", sqlite_cursor.connect)
                event.listen(engine.sync_engine, "connect", _prepare_sqlite)
                event.listen(engine.sync_engine, "handle_error", _replace_unfit_sessions)
            event.listen(self._writes.sync_engine, "begin", _begin_immediate)
        else:
            self._writes = postgres.create_engine(
                url, pool_size=pool_size, max_overflow=pool_size, pool_timeout=10.0, pool_recycle=1800
            )
            event.listen(self._writes.sync_engine, "handle_error", _replace_unfit_sessions)
            event.listen(self._writes.sync_engine, "checkin", _note_checkin)
            event.listen(self._writes.sync_engine, "checkout", _check_idle_connection)
            self._reads = self._writes.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for statements that change nothing. Raises StorageUnavailable when the database is away."""
        with _TranslatedErrors():
            async with (await self._engine_of_reads()).connect() as connection:
                yield connection

    async def _engine_of_reads(self) -> AsyncEngine:
        """Behind a pooler a read needs a transaction too: without one, its two round trips may reach two servers."""
        if not self.is_sqlite and self._is_pooled is None:
            async with self._writes.connect() as connection:
                self._is_pooled = await connection.run_sync(postgres.is_pooled)
        return self._writes if self._is_pooled else self._reads

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Raises StorageUnavailable when the database is away, StorageBlocked when an operator must act first,
        StorageRefused when it can never take these values.
        """
        with _TranslatedErrors():
            async with self._writes.begin() as connection:
                yield connection

    def insert(self, table: Any) -> Any:
        """An INSERT with the dialect's ON CONFLICT."""
        statement: Insert = sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)
        return statement

    def integers_table(self, values: Sequence[int]) -> TableValuedAlias:
        """A table with one column `value` of these integers, which are one parameter of the statement."""
        if self.is_sqlite:
            return func.json_each(json.dumps(list(values))).table_valued(column("value", BigInteger), name="numbers")
        rows = func.unnest(cast(list(values), ARRAY(BigInteger)))
        return rows.table_valued(column("value", BigInteger)).render_derived(name="numbers")

    async def try_advisory_lock(self, connection: AsyncConnection, lock_id: int) -> bool:
        """Lock until the transaction ends; False if another one holds the lock. SQLite has one writer anyway."""
        if self.is_sqlite:
            return True
        result = await connection.execute(text("select pg_try_advisory_xact_lock(:id)"), {"id": lock_id})
        return bool(result.scalar())

    async def checkpoint_wal(self, longer_than: int = WAL_TRUNCATE_BYTES) -> None:
        """Truncate SQLite's write-ahead log if it is longer; waits for readers, but not for long."""
        if not self.is_sqlite or _size_of(self.url.partition(":///")[2] + "-wal") <= longer_than:
            return
        async with self.read() as connection:
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={int(CHECKPOINT_WAIT_S * 1000)}")
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")

    async def ping(self) -> None:
        """Check that the database accepts writes. Raises StorageUnavailable."""
        if self.is_sqlite:
            await self._probe_sqlite()
            return
        async with self.write() as connection:
            # Locks no row, and is refused in a read-only session.
            await connection.execute(select(WorkerProcess.id).where(false()).with_for_update())

    async def _probe_sqlite(self) -> None:
        """Write one page. If another connection holds the write lock, writing works."""
        async with self.read() as connection:
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={int(PROBE_BUSY_TIMEOUT_S * 1000)}")
            try:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
                await connection.exec_driver_sql(f"PRAGMA user_version={int(version)}")
                await connection.exec_driver_sql("COMMIT")
            except DBAPIError as error:
                if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                    await connection.invalidate()  # with the transaction that it may still have open
                    raise
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")

    async def close(self) -> None:
        """Close all connections."""
        await self._reads.dispose()
        await self._writes.dispose()


def _forget_cursors(error: asyncio.CancelledError) -> None:
    """Clear the traceback's frames: they keep a cursor open, and the cursor keeps SQLite's lock.

    A connection that is closed with an open statement keeps its transaction until that statement is gone.
    """
    traceback.clear_frames(error.__traceback__)


def _size_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _replace_unfit_sessions(context: ExceptionContext) -> None:
    """After a failover or a rejected login every pooled session is unfit, though its connection may still be open."""
    meaning = meaning_of(context.original_exception)
    if meaning is not None and meaning.session_is_unfit:
        context.is_disconnect = True


def _note_checkin(connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["idle_since"] = time.monotonic()


def _check_idle_connection(connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
    """Replace a connection that the server has closed, so that the first request after its restart does not fail.

    Free for a connection that was used just now; a round trip for one that was idle.
    """
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError("the server has closed the connection")
    if time.monotonic() - record.info.get("idle_since", math.inf) > PING_AFTER_IDLE_S:
        try:
            connection.ping()
        except postgres.DRIVER_ERRORS as error:  # a new connection tells what is wrong
            raise DisconnectionError("the connection has gone") from error


def _prepare_sqlite(connection: Any, entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
        "foreign_keys=ON",
        "cache_size=-4000",
        "temp_store=MEMORY",
        "wal_autocheckpoint=2000",
        "journal_size_limit=67108864",
    ):
        _execute_when_free(cursor, f"PRAGMA {pragma}")
    cursor.close()


def _execute_when_free(cursor: Any, statement: str) -> None:
    """Execute a statement again while another connection keeps it from its lock, for OPEN_RETRY_S.

    Of two connections that switch a new database to WAL at the same moment, SQLite refuses one at once: no timeout
    applies where both would wait for each other.
    """
    until = time.monotonic() + OPEN_RETRY_S
    while True:
        try:
            cursor.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            await_only(asyncio.sleep(OPEN_RETRY_EVERY_S))


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema to `revision` (up or down). Runs an event loop of its own: call it where none runs.

    Raises StorageUnavailable or StorageRefused, as `write` does.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    with _TranslatedErrors():
        goes_down = revision == "base" or revision.startswith("-") or _is_older(url, revision)
        (command.downgrade if goes_down else command.upgrade)(config, revision)


class _TranslatedErrors:
    """Within the block, the errors of drivers and of SQLAlchemy are raised as our own."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncio.CancelledError):
            _forget_cursors(error)
        elif isinstance(error, Exception) and (ours := translated(error)) is not error:
            raise ours from error


def _is_older(url: str, revision: str) -> bool:
    """True when the database is past that revision: Alembic's upgrade would do nothing about it, and say nothing."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    path = make_url(url).database if url.startswith("sqlite") else None
    if revision in ("head", "heads") or (path and not Path(path).exists()):
        return False

    async def current_revision() -> str | None:
        database = Database(url, pool_size=1)
        try:
            return (await schema_revision(database))[0]
        finally:
            await database.close()

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script, current = ScriptDirectory.from_config(config), asyncio.run(current_revision())
    known = {each.revision for each in script.walk_revisions()}
    if current not in known or revision not in known:
        return False  # it says itself what it does not know
    return revision in {each.revision for each in script.iterate_revisions(current, "base")} - {current}


async def schema_revision(database: Database) -> tuple[str | None, str]:
    """The revision that the database is at (None: not migrated) and the one that this code wants."""
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    latest = ScriptDirectory.from_config(config).get_current_head() or ""
    async with database.read() as connection:
        current = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    return current, latest
