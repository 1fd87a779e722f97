"""Fixtures for every kind of test: how hard Hypothesis looks, and a migrated database that costs a file copy."""

from __future__ import annotations

import gc
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from engine.storage.database import migrate
from tests.fault_report import note_rows, pytest_terminal_summary  # noqa: F401  # a hook of pytest's

if TYPE_CHECKING:
    from tests.gateway import Gateway

# The machine is shared: an example that is slow today is not a fault.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    note_rows(items)
    for item in items:
        if item.path.parent.name == "faults" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(240), append=False)


def pytest_collection_finish() -> None:
    # What was imported and collected stays to the end: the collector need not walk through it again and again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database of the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "embedmill.db"
    migrate(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
def data_dir(migrated: Path, tmp_path: Path) -> Path:
    """A data directory with a migrated database in it."""
    shutil.copyfile(migrated, tmp_path / "embedmill.db")
    return tmp_path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_gateway(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """One gateway for the many tests that leave nothing behind; they run on the session's loop."""
    from tests.gateway import close_gateway, open_gateway  # most unit tests need no API: they start in half the time

    folder = tmp_path_factory.mktemp("shared")
    shutil.copyfile(migrated, folder / "embedmill.db")
    gateway = await open_gateway(folder)
    yield gateway
    await close_gateway(gateway)


@pytest.fixture
async def gateway(data_dir: Path) -> AsyncIterator[Gateway]:
    """The gateway with the fake provider, in this process."""
    from tests.gateway import close_gateway, open_gateway

    gateway = await open_gateway(data_dir)
    yield gateway
    await close_gateway(gateway)
