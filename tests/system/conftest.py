"""Stacks of real processes, shared by the tests of a file: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services import postgres_server
from tests.system.stack import Stack


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole system on each database, with an embedded Valkey of its own."""
    folder = tmp_path_factory.mktemp(f"stack-{request.param}")
    if request.param == "sqlite":
        with Stack(folder) as stack:
            yield stack
        return
    with postgres_server() as server:
        url = server.create(migrated=False)
        try:
            with Stack(folder, database_url=url) as stack:
                yield stack
        finally:
            server.drop(url)


@pytest.fixture(scope="session")
def sqlite_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One for those files that leave it as they found it."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack
