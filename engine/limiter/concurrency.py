"""How many calls of this process may be under way where there is no quota: grows with success, shrinks with trouble."""

from __future__ import annotations

import time

from engine.cancellation import CancellationToken
from engine.limiter.bucket import AIMD_MIN_INTERVAL_S, CUT, CallSignal
from engine.limiter.fair_queue import FairQueue
from engine.limiter.max_wait import BUSY
from models.errors import DeadlineExceeded


class AdaptiveSemaphore:
    """Places, given to those who wait tenant by tenant. Costs next to nothing while there are enough."""

    __slots__ = ("_cut_at", "_most", "_queue", "places", "under_way")

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._queue = FairQueue()
        self._cut_at = -AIMD_MIN_INTERVAL_S
        self.places = float(most)  # the whole part of it counts
        self.under_way = 0

    def at_once(self) -> bool:
        """Take a place where one is free and nobody waits for it."""
        if self.under_way + 1 > self.places or self._queue:
            return False
        self.under_way += 1
        return True

    async def wait(self, deadline: float, stop: CancellationToken, tenant: str = "") -> bool:
        """Wait for a place; False when it was not given one, but told to look elsewhere.

        `deadline` is on time.monotonic(). Raises DeadlineExceeded then, or once the stop is given.
        """
        mine = self._queue.add(tenant)
        try:
            async with stop.within(deadline - time.monotonic()):
                return await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled():
                if mine.result():
                    self.leave(CallSignal.NOTHING)  # it was given a place in this very moment
            else:
                self._queue.remove(tenant, mine)
            if isinstance(error, TimeoutError):
                stop.check()
                raise DeadlineExceeded(BUSY) from None
            raise

    def leave(self, lesson: CallSignal) -> None:
        """Give a place back, with what its call taught."""
        if lesson is CallSignal.WELL:
            if self.places < self._most and self.under_way * 2 >= self.places:
                self.places = min(self._most, self.places + 1 / self.places)
        elif lesson in (CallSignal.LIMITED, CallSignal.SLOW, CallSignal.STRAINED):
            now = time.monotonic()
            if now - self._cut_at >= AIMD_MIN_INTERVAL_S:
                self.places, self._cut_at = max(1.0, self.places * CUT), now
        self.under_way -= 1
        while self.under_way + 1 <= self.places and self._queue:
            self.under_way += 1
            self._queue.pop().set_result(True)

    def send_elsewhere(self) -> None:
        """Tell all who wait here that places are given out elsewhere now."""
        while self._queue:
            self._queue.pop().set_result(False)
