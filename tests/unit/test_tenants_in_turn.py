"""Places and turns go from tenant to tenant, and what one tenant alone meets is no lesson about the route."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.cancellation import CancellationToken
from engine.limiter.bucket import CallSignal
from engine.limiter.concurrency import AdaptiveSemaphore
from engine.limiter.congestion import SUCCESS_MEMORY_S, TROUBLE_MEMORY_S, CongestionDetector
from engine.limiter.fair_queue import FairLock, FairQueue
from models.errors import DeadlineExceeded

CROWD = 50


def test_waiters_come_tenant_by_tenant_and_each_tenants_in_order() -> None:
    async def popped() -> list[str]:
        queue = FairQueue()
        names = {queue.add(name[0]): name for name in ("a1", "a2", "a3", "b1", "c1", "b2")}
        gone = queue.add("a")
        queue.remove("a", gone)
        alone = queue.add("d")
        queue.remove("d", alone)
        return [names[queue.pop()] for _ in range(len(names)) if queue]

    assert asyncio.run(popped()) == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_one_call_waits_for_one_call_of_another_tenant_not_for_all() -> None:
    semaphore, order = AdaptiveSemaphore(1), []
    assert semaphore.try_acquire()

    async def call(tenant: str) -> None:
        assert await semaphore.wait(time.monotonic() + 30, CancellationToken(), tenant)
        order.append(tenant)
        await asyncio.sleep(0)
        semaphore.release(CallSignal.SUCCESS)

    crowd = [asyncio.create_task(call("a")) for _ in range(CROWD)]
    await asyncio.sleep(0)
    late = asyncio.create_task(call("b"))
    await asyncio.sleep(0)
    semaphore.release(CallSignal.SUCCESS)
    await asyncio.gather(late, *crowd)
    assert order.index("b") == 1 and len(order) == CROWD + 1
    assert semaphore.in_use == 0


async def test_a_lock_goes_from_tenant_to_tenant_and_survives_waiters_that_go() -> None:
    lock, order = FairLock(), []

    async def hold(tenant: str) -> None:
        await lock.acquire(tenant)
        order.append(tenant)
        await asyncio.sleep(0)
        lock.release()

    await lock.acquire("a")
    crowd = [asyncio.create_task(hold("a")) for _ in range(CROWD)]
    await asyncio.sleep(0)
    late = asyncio.create_task(hold("b"))
    await asyncio.sleep(0)
    crowd[0].cancel()
    lock.release()
    crowd[1].cancel()  # in the moment in which it was given the lock
    await asyncio.gather(late, *crowd, return_exceptions=True)
    assert order.index("b") <= 1 and order.count("a") == CROWD - 2
    await asyncio.wait_for(lock.acquire("c"), 1)


def served(troubles: CongestionDetector, tenant: str, seconds: float, now: float, count: int = 1) -> bool:
    """True when one of so many calls counted as slow."""
    slow = [troubles.is_slow(tenant, seconds, now) for _ in range(count)]
    return any(slow)


def test_slow_calls_of_one_tenant_are_its_own_while_others_are_served_well() -> None:
    troubles = CongestionDetector()
    assert not served(troubles, "b", 0.05, 0.0, 30)
    assert not served(troubles, "a", 30.0, 1.0, 3)
    assert not served(troubles, "b", 0.05, 2.0)
    assert served(troubles, "a", 30.0, 2.0 + SUCCESS_MEMORY_S + 1)  # nobody has spoken for the route lately


def test_slow_calls_of_all_are_the_routes() -> None:
    troubles = CongestionDetector()
    assert not served(troubles, "a", 0.05, 0.0, 30)
    assert not served(troubles, "b", 0.05, 0.0, 30)
    assert served(troubles, "a", 30.0, 0.5, 20) or served(troubles, "b", 30.0, 0.6, 20)


def test_a_tenant_that_is_alone_speaks_for_the_route() -> None:
    troubles = CongestionDetector()
    assert not served(troubles, "a", 0.05, 0.0, 30)
    assert served(troubles, "a", 30.0, 0.5, 20)
    assert CongestionDetector().is_shared("a", 0.0)


@pytest.mark.parametrize(("others_trouble_s", "shared"), [(None, False), (1.0, True), (TROUBLE_MEMORY_S + 1, False)])
def test_timeouts_count_when_another_tenant_meets_trouble_too(others_trouble_s: float | None, shared: bool) -> None:
    troubles, now = CongestionDetector(), 100.0
    if others_trouble_s is not None:
        troubles.is_shared("b", now - others_trouble_s)
    served(troubles, "b", 0.05, now - 0.5)
    assert troubles.is_shared("a", now) is shared


async def test_a_place_is_not_given_to_a_call_that_was_just_cancelled() -> None:
    semaphore = AdaptiveSemaphore(1)
    assert semaphore.try_acquire()
    waiting = [asyncio.create_task(semaphore.wait(time.monotonic() + 30, CancellationToken(), "a")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    semaphore.release(CallSignal.NONE)  # before those two have run, and taken themselves out
    assert await waiting[2] is True
    semaphore.release(CallSignal.NONE)
    assert semaphore.in_use == 0 and semaphore.try_acquire()


async def test_a_place_that_is_given_to_a_call_that_goes_is_free_again() -> None:
    semaphore = AdaptiveSemaphore(1)
    assert semaphore.try_acquire()
    going = asyncio.create_task(semaphore.wait(time.monotonic() + 30, CancellationToken(), "a"))
    await asyncio.sleep(0)
    semaphore.release(CallSignal.NONE)
    going.cancel()  # in the moment in which it was given the place
    with pytest.raises(asyncio.CancelledError):
        await going
    assert semaphore.in_use == 0 and semaphore.try_acquire()


async def test_a_call_that_goes_before_its_turn_leaves_the_line() -> None:
    semaphore = AdaptiveSemaphore(1)
    assert semaphore.try_acquire()
    going = asyncio.create_task(semaphore.wait(time.monotonic() + 30, CancellationToken(), "a"))
    await asyncio.sleep(0)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    with pytest.raises(DeadlineExceeded):
        await semaphore.wait(time.monotonic(), CancellationToken(), "b")
    semaphore.release(CallSignal.NONE)
    assert semaphore.in_use == 0 and semaphore.try_acquire()
