"""The errors of libraries that are caught by name are all that these libraries declare."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from kombu.transport import pyamqp, redis
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DisconnectionError

from engine.queue.broker import BROKER_ERRORS, Notifier
from engine.storage.database import PING_AFTER_IDLE_S, _check_idle_connection
from engine.storage.postgres import DRIVER_ERRORS


@pytest.mark.parametrize("transport", [redis.Transport, pyamqp.Transport])
def test_every_error_that_a_transport_declares_is_an_error_of_the_broker(transport: Any) -> None:
    recoverable = getattr(transport, "recoverable_connection_errors", ())
    declared = {*transport.connection_errors, *transport.channel_errors, *recoverable}
    assert declared and [each for each in declared if not issubclass(each, BROKER_ERRORS)] == []


def test_every_error_that_the_dialect_translates_is_an_error_of_the_driver() -> None:
    translated = AsyncAdapt_asyncpg_dbapi(asyncpg)._asyncpg_error_translate  # type: ignore[no-untyped-call]
    assert translated
    assert [each for each in (*translated, *translated.values()) if not issubclass(each, DRIVER_ERRORS)] == []


class LostConnection:
    """A pooled connection whose server has gone, and that does not know it yet."""

    driver_connection: Any

    def __init__(self, error: Exception) -> None:
        self.driver_connection = self
        self._error = error

    def is_closed(self) -> bool:
        return False

    def ping(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "reset"),
        TimeoutError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InternalClientError("unexpected message"),
        AsyncAdapt_asyncpg_dbapi.InterfaceError("connection is closed"),  # type: ignore[no-untyped-call]
    ],
)
def test_an_idle_connection_that_has_gone_is_replaced(error: Exception) -> None:
    record: Any = SimpleNamespace(info={"idle_since": -PING_AFTER_IDLE_S})
    with pytest.raises(DisconnectionError) as raised:
        _check_idle_connection(LostConnection(error), record, None)
    assert raised.value.__cause__ is error


class RefusingNotifier(Notifier):
    """A notifier whose queue cannot be declared."""

    def __init__(self, error: Exception) -> None:
        super().__init__("memory://")
        self._error = error

    def _app(self) -> Any:
        raise self._error


@pytest.mark.parametrize("error", [OSError(111, "refused"), KeyError(7), struct.error("short"), RuntimeError("closed")])
async def test_a_broker_that_cannot_be_asked_has_no_known_number_of_messages(error: Exception) -> None:
    notifier = RefusingNotifier(error)
    try:
        assert await notifier.waiting() is None and not await notifier.reachable()
    finally:
        notifier.close()
