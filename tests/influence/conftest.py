"""One system for all acts: starting it takes longer than an act."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.influence.attacker import Attacker
from tests.influence.field import Field
from tests.system.stack import Stack


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with Stack(tmp_path_factory.mktemp("influence")) as stack:
        field = Field(stack, latency_ms=5)
        yield field
        field.close()


@pytest.fixture(scope="module")
def attacker(field: Field) -> Iterator[Attacker]:
    with Attacker(field.target) as attacker:
        yield attacker
