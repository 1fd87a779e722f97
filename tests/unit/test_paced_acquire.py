"""A call that was charged and does not start gets its cost back, whatever ends its wait."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.cancellation import CancellationToken
from engine.limiter.acquire import AcquireQueue, PacedAcquire
from engine.limiter.bucket import AcquireDecision, AcquireRequest, CallResult, CallSignal, Verdict
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.fair_queue import FairLock
from engine.limiter.redis_store import RedisStore
from models.errors import DeadlineExceeded, EmbedmillError

REFUND = CallResult("slot", CallSignal.NONE, tokens=-7.0, requests=-1.0)


class ChargingCoordinator(BucketCoordinator):
    """Charges each call; its start is `wait_s` later, unless the slot is refused by then."""

    def __init__(self, wait_s: float, *, fails_at_start: bool = False) -> None:
        super().__init__(RedisStore(""), "a/m", max_concurrency=4, slot_ttl_s=10.0)
        self.wait_s = wait_s
        self.fails_at_start = fails_at_start
        self.charged = asyncio.Event()
        self.settled: list[CallResult] = []

    async def acquire(self, request: AcquireRequest) -> AcquireDecision:
        if request.is_charged and self.fails_at_start:
            raise ZeroDivisionError
        self.charged.set()
        return AcquireDecision(Verdict.ALLOW, 0.0 if request.is_charged else self.wait_s)

    async def settle(self, result: CallResult) -> None:
        self.settled.append(result)


def acquire(coordinator: BucketCoordinator, stop: CancellationToken) -> PacedAcquire:
    queue = AcquireQueue("a", "m", coordinator, True, asyncio.Event(), FairLock())
    return PacedAcquire(queue, "slot", 7.0, time.monotonic() + 600, stop, None)


async def test_a_call_that_is_cancelled_before_its_start_is_refunded_once() -> None:
    coordinator = ChargingCoordinator(wait_s=60.0)
    waiting = asyncio.create_task(acquire(coordinator, CancellationToken()).run())
    await coordinator.charged.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert coordinator.settled == [REFUND]


async def test_a_run_that_stops_before_the_start_is_refunded() -> None:
    coordinator, stop = ChargingCoordinator(wait_s=60.0), CancellationToken()
    waiting = asyncio.create_task(acquire(coordinator, stop).run())
    await coordinator.charged.wait()
    stop.cancel(EmbedmillError("preempted"))
    with pytest.raises(DeadlineExceeded):
        await waiting
    assert coordinator.settled == [REFUND]


async def test_a_coordinator_that_fails_at_the_start_is_sent_the_refund() -> None:
    coordinator = ChargingCoordinator(wait_s=0.001, fails_at_start=True)
    with pytest.raises(ZeroDivisionError):
        await acquire(coordinator, CancellationToken()).run()
    assert coordinator.settled == [REFUND]


async def test_a_call_that_starts_keeps_its_charge() -> None:
    coordinator = ChargingCoordinator(wait_s=0.001)
    await acquire(coordinator, CancellationToken()).run()
    assert coordinator.settled == []
