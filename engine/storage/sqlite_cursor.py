"""SQLite statements in one visit of the connection's thread.

SQLAlchemy's adapter visits it four times for each: to make a cursor, to execute, to fetch the rows and to close. Each
visit wakes two threads, which costs more than most of our statements.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Sequence
from typing import Any

from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection, AsyncAdapt_aiosqlite_cursor


class OneVisitCursor(AsyncAdapt_aiosqlite_cursor):
    """A cursor that is read and closed as soon as it is executed; its rows are kept here, as the adapter's are too."""

    __slots__ = ()

    def _make_new_cursor(self, connection: Any) -> Any:
        """None yet: each statement makes its own, in the thread."""

    def _aenter_cursor(self, cursor: Any) -> Any:
        return cursor

    async def _execute_async(self, operation: Any, parameters: Any) -> None:
        connection: Any = self._connection
        async with self._adapt_connection._execute_mutex:
            self._cursor, rows = await connection._execute(_run, connection, operation, parameters)
        self._rows = deque(rows)

    async def _executemany_async(self, operation: Any, seq_of_parameters: Any) -> None:
        connection: Any = self._connection
        async with self._adapt_connection._execute_mutex:
            self._cursor = await connection._execute(_run_many, connection, operation, seq_of_parameters)

    async def _async_soft_close(self) -> None:
        """Closed already."""

    def close(self) -> None:
        """Forget the rows."""
        self._rows.clear()


class OneVisitConnection(AsyncAdapt_aiosqlite_connection):
    """A connection with such cursors; those that stream are the adapter's."""

    __slots__ = ()

    _cursor_cls = OneVisitCursor


def connect(dialect: Any, record: Any, arguments: Sequence[Any], options: dict[str, Any]) -> OneVisitConnection:
    """A listener of SQLAlchemy's event `do_connect`."""
    plain = dialect.connect(*arguments, **options)
    return OneVisitConnection(plain.dbapi, plain._connection)


def _run(connection: Any, operation: str, parameters: Any) -> tuple[sqlite3.Cursor, list[Any]]:
    cursor: sqlite3.Cursor = connection._conn.cursor()
    try:
        cursor.execute(operation, () if parameters is None else parameters)
        return cursor, cursor.fetchall() if cursor.description else []
    finally:
        cursor.close()


def _run_many(connection: Any, operation: str, rows: Any) -> sqlite3.Cursor:
    cursor: sqlite3.Cursor = connection._conn.cursor()
    try:
        return cursor.executemany(operation, rows)
    finally:
        cursor.close()
