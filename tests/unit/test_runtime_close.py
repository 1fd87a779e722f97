"""Closing: a part that fails to close leaves no other open."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.settings import Settings
from engine.queue.broker import Notifier
from engine.runtime import Runtime
from engine.storage.database import Database


class FailingBell(Notifier):
    def close(self) -> None:
        raise RuntimeError("the broker's library")


class WatchedDatabase(Database):
    is_closed = False

    async def close(self) -> None:
        self.is_closed = True
        await super().close()


async def test_one_failing_close_leaves_no_other_part_open(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime = Runtime.open(Settings(data_dir=data_dir))
    runtime.notifier = FailingBell("")
    runtime.database = database = WatchedDatabase(runtime.database.url)
    runtime.journal.close()
    await runtime.close()
    assert database.is_closed and "broker could not be closed" in caplog.text
