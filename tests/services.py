"""Real services for tests: where they are, whether they answer, and a corner of each that is one test's alone.

Addresses: EMBEDMILL_TEST_POSTGRES_URL, EMBEDMILL_TEST_REDIS_URL, EMBEDMILL_TEST_RABBITMQ_URL. A service that
is away is a skip with a reason, and a failure where EMBEDMILL_TEST_REQUIRE_SERVICES=1 (that is, in CI).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import redis

from engine.storage.database import migrate

POSTGRES_URL = os.environ.get("EMBEDMILL_TEST_POSTGRES_URL") or "postgresql://postgres@127.0.0.1:5432/postgres"
REDIS_URL = os.environ.get("EMBEDMILL_TEST_REDIS_URL") or "redis://127.0.0.1:6379"
RABBITMQ_URL = os.environ.get("EMBEDMILL_TEST_RABBITMQ_URL") or "amqp://guest:guest@127.0.0.1:5672//"
CONNECT_S = 5.0
OWNER_KEY = "embedmill-tests:owner"
OWNER_S = 900  # a run that was killed gives its Redis database back after this time

T = TypeVar("T")


def is_away(service: str, problem: object) -> NoReturn:
    """Skip the test, or fail it where services are required."""
    reason = f"{service} is not reachable: {problem}"
    if os.environ.get("EMBEDMILL_TEST_REQUIRE_SERVICES") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code, also where an event loop happens to run in this thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def with_path(url: str, path: str) -> str:
    """The URL of another database, or vhost, on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))


class PostgresServer:
    """Makes databases and drops them again. Each is a copy of a migrated template, which costs less than migrating."""

    def __init__(self) -> None:
        self._template: str | None = None

    def create(self, *, migrated: bool = True) -> str:
        """A fresh database's URL."""
        if migrated and self._template is None:
            template = self.create(migrated=False)
            with ThreadPoolExecutor(1) as thread:  # Alembic runs an event loop of its own
                thread.submit(migrate, async_url(template)).result()
            self._template = _name(template)
        name = f"embedmill_test_{secrets.token_hex(6)}"
        self._run(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{self._template}"' if migrated else ""))
        return with_path(POSTGRES_URL, name)

    def drop(self, url: str) -> None:
        self._run(f'DROP DATABASE IF EXISTS "{_name(url)}" WITH (FORCE)')

    def end_connections(self, url: str) -> int:
        """Cut every connection to one database, as a restart of the server would; how many there were."""
        text = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1"
        return int(self._run(text, _name(url)))

    def close(self) -> None:
        if self._template is not None:
            self.drop(with_path(POSTGRES_URL, self._template))

    @staticmethod
    def _run(statement: str, *arguments: str) -> Any:
        async def run() -> Any:
            connection = await asyncpg.connect(POSTGRES_URL, timeout=CONNECT_S)
            try:
                return await connection.fetchval(statement, *arguments)
            finally:
                await connection.close()

        return run_async(run())


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """The PostgreSQL server of the tests, with its template dropped at the end."""
    server = PostgresServer()
    try:
        server._run("SELECT 1")
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        is_away("PostgreSQL", error)
    try:
        yield server
    finally:
        server.close()


def async_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)


def _name(url: str) -> str:
    return urlsplit(url).path.lstrip("/")


@contextmanager
def redis_database() -> Iterator[str]:
    """The URL of a Redis database that was empty and is ours until the end; then it is emptied again."""
    owner = secrets.token_hex(8)
    try:
        for number in range(15, 0, -1):
            url = with_path(REDIS_URL, str(number))
            with redis.Redis.from_url(url, socket_timeout=CONNECT_S) as client:
                if client.dbsize() or not client.set(OWNER_KEY, owner, nx=True, ex=OWNER_S):
                    continue
                try:
                    yield url
                finally:
                    client.flushdb()
                return
    except redis.ConnectionError as error:
        is_away("Redis", error)
    is_away("Redis", "each of its databases 1 to 15 holds data")


@contextmanager
def rabbitmq_vhost() -> Iterator[str]:
    """The URL of a vhost of our own. AMQP cannot make one, so `rabbitmqctl` must be at hand."""
    address = urlsplit(RABBITMQ_URL)
    try:
        socket.create_connection((address.hostname, address.port or 5672), timeout=CONNECT_S).close()
    except OSError as error:
        is_away("RabbitMQ", error)
    control = shutil.which("rabbitmqctl") or shutil.which("rabbitmqctl", path="/usr/sbin:/usr/lib/rabbitmq/bin")
    if control is None:
        is_away("RabbitMQ", "rabbitmqctl, which makes a vhost for the test, is not installed")
    name = f"embedmill_test_{secrets.token_hex(6)}"
    _rabbitmqctl(control, "add_vhost", name)
    try:
        _rabbitmqctl(control, "set_permissions", "-p", name, address.username or "guest", *[".*"] * 3)
        yield with_path(RABBITMQ_URL, name)
    finally:
        _rabbitmqctl(control, "delete_vhost", name)


def _rabbitmqctl(control: str, *arguments: str) -> None:
    ran = subprocess.run([control, "-q", *arguments], capture_output=True, check=False, text=True, timeout=60)
    if ran.returncode:
        is_away("RabbitMQ", f"rabbitmqctl {arguments[0]}: {ran.stderr.strip()}")


class SqliteFiles:
    """SQLite databases that are copies of one migrated file."""

    def __init__(self, folder: Path) -> None:
        self._template = folder / "template.db"
        with ThreadPoolExecutor(1) as thread:
            thread.submit(migrate, f"sqlite+aiosqlite:///{self._template}").result()

    def create(self, folder: Path) -> str:
        """The URL of a fresh, migrated database in the folder."""
        shutil.copyfile(self._template, folder / "embedmill.db")
        return f"sqlite:///{folder / 'embedmill.db'}"
