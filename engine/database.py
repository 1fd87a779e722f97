"""The one place that names SQLAlchemy's engine: connections, transactions and what differs between the two databases.

Reads run in autocommit mode (one round trip, no BEGIN and ROLLBACK around it). Writes run in a real transaction; on
SQLite that is BEGIN IMMEDIATE through a single connection, so that two writers of a process queue here, in order,
rather than in SQLite's sleeping busy handler, and no reader is ever upgraded into a deadlock.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Insert, TableValuedAlias, cast, column, event, func, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from models.errors import StorageUnavailable

MIGRATIONS = Path(__file__).resolve().parent.parent / "alembic"
BUSY_TIMEOUT_S = 30.0
STATEMENT_TIMEOUT_MS = 60_000
LOCK_TIMEOUT_MS = 20_000
# SQLite shortens its log by itself, but only in a moment without a reader, and on a busy machine there may be none.
LONG_LOG_BYTES = 256 * 1024 * 1024
TRIM_PATIENCE_S = 1.0
# A process that is frozen, or whose machine is cut off, in the middle of a transaction keeps its locks: not for long.
IDLE_IN_TRANSACTION_MS = 10_000


class Database:
    """A database, opened lazily: nothing connects before the first statement, so that it may be made before a fork."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.sqlite_path = make_url(url).database if self.is_sqlite else None
        self._reads: AsyncEngine
        self._writes: AsyncEngine
        if self.is_sqlite:
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S, "isolation_level": None}}
            self._reads = create_async_engine(
                url, pool_size=pool_size, max_overflow=0, pool_reset_on_return=None, **options
            )
            self._writes = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=BUSY_TIMEOUT_S, **options)
            for engine in (self._reads, self._writes):
                event.listen(engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._writes.sync_engine, "begin", _begin_immediate)
        else:
            self._writes = create_async_engine(
                url,
                pool_size=pool_size,
                max_overflow=pool_size,
                pool_timeout=10.0,
                pool_recycle=1800,
                connect_args={
                    "timeout": 10.0,
                    "server_settings": {
                        "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                        "lock_timeout": str(LOCK_TIMEOUT_MS),
                        "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
                        "application_name": "embedmill",
                    },
                },
            )
            self._reads = self._writes.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for statements that change nothing. Raises StorageUnavailable when the database is away."""
        try:
            async with self._reads.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _as_ours(error) from error
        except OSError as error:
            raise StorageUnavailable("the database does not answer", retry_after_s=2.0) from error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        try:
            async with self._writes.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _as_ours(error) from error
        except OSError as error:
            raise StorageUnavailable("the database does not answer", retry_after_s=2.0) from error

    def insert(self, table: Any) -> Any:
        """An INSERT with the dialect's ON CONFLICT."""
        made: Insert = sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)
        return made

    def numbers(self, values: Sequence[int]) -> TableValuedAlias:
        """Whole numbers as a table with one column, `value`: however many, they are one parameter of the statement."""
        if self.is_sqlite:
            return func.json_each(json.dumps(list(values))).table_valued(column("value", BigInteger), name="numbers")
        rows = func.unnest(cast(list(values), ARRAY(BigInteger)))
        return rows.table_valued(column("value", BigInteger)).render_derived(name="numbers")

    async def alone(self, connection: AsyncConnection, duty: int) -> bool:
        """True when no other transaction does this duty now. SQLite has one writer anyway."""
        if self.is_sqlite:
            return True
        got = await connection.execute(text("select pg_try_advisory_xact_lock(:duty)"), {"duty": duty})
        return bool(got.scalar())

    async def trim_log(self, longer_than: int = LONG_LOG_BYTES) -> None:
        """Shorten SQLite's log where it has grown long; readers are waited for, but not for long. Else nothing."""
        if not self.is_sqlite or _size_of(self.url.partition(":///")[2] + "-wal") <= longer_than:
            return
        async with self.read() as connection:
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={int(TRIM_PATIENCE_S * 1000)}")
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            await connection.exec_driver_sql(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")

    async def ping(self) -> None:
        async with self.read() as connection:
            await connection.execute(text("select 1"))

    async def close(self) -> None:
        await self._reads.dispose()
        await self._writes.dispose()


def _as_ours(error: SQLAlchemyError) -> Exception:
    """An outage becomes StorageUnavailable; anything else is a fault of our own and stays what it is."""
    if isinstance(error, PoolTimeout | OperationalError | InterfaceError) or (
        isinstance(error, DBAPIError) and (error.connection_invalidated or _is_outage(error))
    ):
        return StorageUnavailable("the database does not answer", retry_after_s=2.0)
    return error


def _size_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _is_outage(error: DBAPIError) -> bool:
    # SQLSTATE classes: 08 connection, 53 resources, 57 operator, 40 rollback (deadlock); 25P03 and 55P03 are
    # timeouts; 55000 is a server that takes no connections yet.
    state = str(getattr(error.orig, "sqlstate", "") or "")
    return state[:2] in ("08", "53", "57", "40") or state in ("25P03", "55P03", "55000")


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
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema to `revision` (up or down). Runs an event loop of its own: call it where none runs."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    if revision in ("base",) or revision.startswith("-"):
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


async def schema_revision(database: Database) -> tuple[str | None, str]:
    """The revision that the database is at (None: not migrated) and the one that this code wants."""
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    wanted = ScriptDirectory.from_config(config).get_current_head() or ""
    async with database.read() as connection:
        current = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    return current, wanted
