"""Adaptive concurrency limit (AIMD) of one process, for routes without a quota."""

from __future__ import annotations

import time

from engine.cancellation import CancellationToken
from engine.limiter.bucket import AIMD_DECREASE, AIMD_MIN_INTERVAL_S, CallSignal
from engine.limiter.fair_queue import FairQueue
from engine.limiter.max_wait import AT_CAPACITY_MESSAGE
from models.errors import DeadlineExceeded


class AdaptiveSemaphore:
    """Slots for calls; tenants that wait for one are served in turn. `limit` follows the outcomes of calls."""

    __slots__ = ("_decreased_at", "_max", "_queue", "in_use", "limit")

    def __init__(self, maximum: int) -> None:
        self._max = float(maximum)
        self._queue = FairQueue()
        self._decreased_at = -AIMD_MIN_INTERVAL_S
        self.limit = float(maximum)  # its whole part counts
        self.in_use = 0

    def try_acquire(self) -> bool:
        """Take a slot if one is free and nobody waits for it."""
        if self.in_use + 1 > self.limit or (self._queue.by_tenant and self._queue):
            return False
        self.in_use += 1
        return True

    async def wait(self, deadline: float, stop: CancellationToken, tenant: str = "") -> bool:
        """Wait for a slot. Returns False when the waiter was redirected to the shared buckets instead.

        `deadline` is on time.monotonic(). Raises DeadlineExceeded at the deadline, or once `stop` is cancelled.
        """
        try:
            async with stop.timeout(deadline - time.monotonic()):
                return await self._queue.wait(tenant, lambda: self.release(CallSignal.NONE))
        except TimeoutError:
            stop.raise_if_cancelled()
            raise DeadlineExceeded(AT_CAPACITY_MESSAGE) from None

    def release(self, signal: CallSignal) -> None:
        """Free a slot and adapt the limit to how its call ended."""
        if signal is CallSignal.SUCCESS:
            if self.limit < self._max and self.in_use * 2 >= self.limit:
                self.limit = min(self._max, self.limit + 1 / self.limit)
        elif signal in (CallSignal.RATE_LIMITED, CallSignal.SLOW, CallSignal.OVERLOADED):
            now = time.monotonic()
            if now - self._decreased_at >= AIMD_MIN_INTERVAL_S:
                self.limit, self._decreased_at = max(1.0, self.limit * AIMD_DECREASE), now
        self.in_use -= 1
        while self._queue.by_tenant and self.in_use + 1 <= self.limit and self._queue:
            self.in_use += 1
            self._queue.pop().set_result(True)

    def redirect_waiters(self) -> None:
        """End all waits with False: from now on calls are admitted by the shared buckets."""
        while self._queue:
            self._queue.pop().set_result(False)
