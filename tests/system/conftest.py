"""Stacks of real processes, one for each database, shared by tests: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services import postgres_server
from tests.system.stack import Stack


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole system on each database, with an embedded Valkey of its own."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_stack")
        return
    with postgres_server() as server:
        url = server.create(migrated=False)
        try:
            with Stack(tmp_path_factory.mktemp("postgres-stack"), database_url=url) as stack:
                yield stack
        finally:
            server.drop(url)


@pytest.fixture(scope="session")
def sqlite_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Whoever kills a part of it starts it again."""
    with Stack(tmp_path_factory.mktemp("sqlite-stack")) as stack:
        yield stack
