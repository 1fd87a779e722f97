"""A database of the bench's own on a PostgreSQL server that is there already, and the server's processes."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from bench.measure import Tree


class BenchDatabase:
    """Made when opened, dropped when closed, whoever is still connected."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._name = f"embedmill_bench_{secrets.token_hex(4)}"
        self.url = urlunsplit(urlsplit(server_url)._replace(path=f"/{self._name}"))
        self.version = ""
        self.server: Tree | None = None

    def open(self) -> None:
        """Create the database, and find the server's processes if they are on this machine."""
        self.version, server_pid = asyncio.run(self._create())
        if server_pid:
            self.server = Tree("postgres", server_pid)

    def close(self) -> None:
        """Drop the database."""
        asyncio.run(self._drop())

    async def _create(self) -> tuple[str, int]:
        async with self._connected() as connection:
            await connection.exec_driver_sql(f'CREATE DATABASE "{self._name}"')
            version = (await connection.exec_driver_sql("SHOW server_version")).scalar_one()
            pid = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
            return str(version).split()[0], _server_of(pid)

    async def _drop(self) -> None:
        async with self._connected() as connection:
            await connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{self._name}" WITH (FORCE)')

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        url = re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", self._server_url)
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        try:
            async with engine.connect() as connection:
                yield connection
        finally:
            await engine.dispose()


def _server_of(backend_pid: int) -> int:
    """The server process above a backend; 0 where the backend runs on another machine."""
    status = Path(f"/proc/{backend_pid}/stat")
    text = status.read_text() if status.exists() else ""
    return int(text[text.rindex(")") + 2 :].split()[1]) if "(postgres)" in text else 0
