"""What a process tells a Redis that was away: its last debts may have been lost there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from engine.limiter import lua
from engine.limiter.bucket import AcquireRequest
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.quota import request_bucket, token_bucket
from engine.limiter.redis_store import RedisStore
from tests.fakes import run

# Where the arguments of lua.ACQUIRE have the least debts, and whether they override what is stored.
MIN_DEBTS, OVERRIDES = slice(-5, -3), -1


class RecordingStore(RedisStore):
    """A Redis that admits every call, and reports these debts of tokens and requests."""

    def __init__(self, debts: tuple[float, float]) -> None:
        super().__init__("redis://redis.test")
        self.debts = debts
        self.acquired: list[list[str | float | int]] = []

    async def eval(self, script: str, keys: Sequence[str], arguments: Sequence[str | float | int]) -> list[Any] | None:
        assert script == lua.ACQUIRE
        self.acquired.append(list(arguments))
        return ["allow", "0", "1", *map(str, self.debts), "8"]


def test_after_a_reconnection_the_burst_counts_as_used_once() -> None:
    async def debts_sent() -> list[list[str | float | int]]:
        store = RecordingStore((50.0, 1.0))
        coordinator = BucketCoordinator(store, "up|m", max_concurrency=8, slot_ttl_s=60.0)
        coordinator.set_limits(token_bucket(60_000), request_bucket(600))
        for number, reconnects in enumerate((0, 0, 1, 1)):
            store.reconnects = reconnects
            await coordinator.acquire(AcquireRequest(f"slot-{number}", True, 10.0, 1.0))
        await coordinator.close()
        return store.acquired

    first, second, reconnected, following = run(debts_sent())
    assert (first[MIN_DEBTS], first[OVERRIDES]) == ([0.0, 0.0], 0)
    assert second[MIN_DEBTS] == pytest.approx([50.0, 1.0], abs=0.5) and second[OVERRIDES] == 0
    # 2.2 % of each quota.
    assert reconnected[MIN_DEBTS] == pytest.approx([1320.0, 13.2]) and reconnected[OVERRIDES] == 1
    assert following[MIN_DEBTS] == pytest.approx([50.0, 1.0], abs=0.5) and following[OVERRIDES] == 0
