"""Unit tests reach no network: a connection that one tries to open is its failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

_CONNECTIONS = ("socket.connect", "socket.getaddrinfo")
_shut = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if _shut and event in _CONNECTIONS and not isinstance(arguments[-1], str | bytes):  # a path is a Unix socket's
        raise AssertionError(f"a unit test reaches for the network: {event}{arguments[1:]}")


sys.addaudithook(_refuse)  # for the life of the process, so it is switched and not removed


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    global _shut
    _shut = True
    yield
    _shut = False
