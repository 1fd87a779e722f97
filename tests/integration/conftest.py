"""A database, a store and a broker for each test that asks for one; every test of the store runs on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from engine.upstream.http import HttpTransport
from tests.integration.store import Store
from tests.services import PostgresServer, SqliteFiles, postgres_server, rabbitmq_vhost, redis_database

DatabaseFactory = Callable[[], str]


@pytest.fixture(scope="session")
def sqlite_files(tmp_path_factory: pytest.TempPathFactory) -> SqliteFiles:
    return SqliteFiles(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database of this test alone, on each of the two."""
    if request.param == "sqlite":
        files: SqliteFiles = request.getfixturevalue("sqlite_files")
        yield files.create(tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store.open(database_url, tmp_path)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_database() as url:
        yield url


@pytest.fixture
async def pacing_redis(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of Redis for tests of pacing: every bucket that the test made is deleted after it."""
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    yield client
    for key in await client.keys("*em:pace:*"):
        await client.delete(key)
    await client.aclose()


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    with rabbitmq_vhost() as url:
        yield url


@pytest.fixture
async def wire() -> AsyncIterator[HttpTransport]:
    """What sends calls upstream, with little patience for connecting."""
    wire = HttpTransport(connect_timeout_s=0.3)
    yield wire
    await wire.close()
