"""The store stays true to itself in runs of the machine of store_machine.py on both databases.

EMBEDMILL_TEST_MACHINE_RUNS=500 makes it run so many times, with new steps each time; by default it makes the same few
runs, in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)

from tests.integration.store_machine import StoreMachine
from tests.services import PostgresServer, SqliteFiles

RUNS = os.environ.get("EMBEDMILL_TEST_MACHINE_RUNS")


@pytest.fixture(params=["sqlite", "postgres"])
def machine(request: pytest.FixtureRequest) -> Iterator[tuple[type[StoreMachine], int]]:
    """The machine on one database, and how many runs of it are worth their time there."""
    if request.param == "sqlite":
        files: SqliteFiles = request.getfixturevalue("sqlite_files")
        make, drop, examples = files.create, lambda url: None, int(RUNS or 8)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        make, drop, examples = lambda folder: server.create(), server.drop, int(RUNS or 3)

    class Machine(StoreMachine):
        make_url = staticmethod(make)
        drop_url = staticmethod(drop)

    yield Machine, examples


def test_the_store_stays_true_to_itself(machine: tuple[type[StoreMachine], int]) -> None:
    kind, examples = machine
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=RUNS is None,
            print_blob=True,
            # No shrinking: it may take minutes, and the steps are printed as they are.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
