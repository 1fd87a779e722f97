"""Stacks of real processes, one for each database, shared by tests: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services import postgres_server
from tests.system.stack import Stack


@pytest.fixture(params=["sqlite", "postgres"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """The whole system on each database, with an embedded Valkey of its own."""
    stack: Stack = request.getfixturevalue(f"{request.param}_stack")
    return stack


@pytest.fixture(scope="session")
def sqlite_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Whoever kills a part of it starts it again."""
    with Stack(tmp_path_factory.mktemp("sqlite-stack")) as stack:
        yield stack


@pytest.fixture(scope="session")
def postgres_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same on PostgreSQL."""
    with postgres_server() as server:
        url = server.create(migrated=False)
        try:
            with Stack(tmp_path_factory.mktemp("postgres-stack"), database_url=url) as stack:
                yield stack
        finally:
            server.drop(url)
