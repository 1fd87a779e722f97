"""How many calls of this process may be under way where there is no quota: grows with success, shrinks with trouble."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from engine.limiter.book import CUT, CUT_EVERY_S, Lesson
from engine.stop import Stop
from models.errors import DeadlineExceeded


class Door:
    """Places, given out in the order in which they were asked for. Costs next to nothing while there are enough."""

    __slots__ = ("_cut_at", "_most", "_queue", "places", "under_way")

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._queue: deque[asyncio.Future[bool]] = deque()
        self._cut_at = -CUT_EVERY_S
        self.places = float(most)  # the whole part of it counts
        self.under_way = 0

    def at_once(self) -> bool:
        """Take a place where one is free and nobody waits for it."""
        if self.under_way + 1 > self.places or self._queue:
            return False
        self.under_way += 1
        return True

    async def wait(self, deadline: float, stop: Stop) -> bool:
        """Wait for a place; False when it was not given one, but told to look elsewhere.

        `deadline` is on time.monotonic(). Raises DeadlineExceeded then, or once the stop is given.
        """
        mine: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.append(mine)
        try:
            async with stop.within(deadline - time.monotonic()):
                return await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled():
                if mine.result():
                    self.leave(Lesson.NOTHING)  # it was given a place in this very moment
            else:
                mine.cancel()
                self._queue.remove(mine)
            if isinstance(error, TimeoutError):
                stop.check()
                raise DeadlineExceeded("too many calls to this provider are under way") from None
            raise

    def leave(self, lesson: Lesson) -> None:
        """Give a place back, with what its call taught."""
        if lesson is Lesson.WELL:
            if self.places < self._most and self.under_way * 2 >= self.places:
                self.places = min(self._most, self.places + 1 / self.places)
        elif lesson in (Lesson.LIMITED, Lesson.SLOW, Lesson.STRAINED):
            now = time.monotonic()
            if now - self._cut_at >= CUT_EVERY_S:
                self.places, self._cut_at = max(1.0, self.places * CUT), now
        self.under_way -= 1
        while self._queue and self.under_way + 1 <= self.places:
            self.under_way += 1
            self._queue.popleft().set_result(True)

    def send_elsewhere(self) -> None:
        """Tell all who wait here that places are given out elsewhere now."""
        while self._queue:
            self._queue.popleft().set_result(False)
