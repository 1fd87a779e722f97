"""One paced call on its way to its start: it asks at the desk, waits, or is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass

from engine.limiter.book import Answer, Ask, End, Lesson, Verdict
from engine.limiter.desk import Desk
from engine.limiter.waits import Waits
from engine.stop import Stop
from models.errors import DeadlineExceeded, UpstreamRateLimited

SLICE_S = 0.5  # nobody sleeps longer without looking how long is left
LEAST_PAUSE_S = 0.002


@dataclass(slots=True)
class Lane:
    """Those of one lane who want to start. One asks at a time, so that a crowd does not ask for everyone's sake."""

    desk: Desk
    interactive: bool
    place_free: asyncio.Event
    turn: asyncio.Lock


@dataclass(slots=True)
class Turn:
    lane: Lane
    slot: str
    tokens: float
    deadline: float  # for the start, on time.monotonic()
    stop: Stop
    waits: Waits | None

    async def take(self) -> None:
        """Return when the call may start, with its place taken and its cost charged; raise when it may not."""
        lane = self.lane
        self._check(lane.desk.gate_s())
        try:
            async with self.stop.within(self.deadline - time.monotonic()):
                await lane.turn.acquire()
        except TimeoutError:
            self.stop.check()
            raise self._turned_away(max(1.0, lane.desk.gate_s())) from None
        try:
            answer = await self._charged()
        finally:
            lane.turn.release()
        if answer.wait_s > 0:
            await self._start_later(answer.wait_s)

    async def _charged(self) -> Answer:
        """Ask until the call is charged. Its start may lie ahead still."""
        while True:
            gate_s = self.lane.desk.gate_s()
            if gate_s > 0:  # known here: nobody needs to be asked
                await self._pause(Answer(Verdict.GATE, gate_s))
                continue
            self.stop.check()
            answer = await self.lane.desk.ask(self._ask(paid=False))
            if answer.verdict is Verdict.GO:
                return answer
            await self._pause(answer)

    async def _start_later(self, wait_s: float) -> None:
        """Sleep until the start that was given, then see that the gate is open, and take a place."""
        try:
            loop = asyncio.get_running_loop()
            start_at = loop.time() + wait_s
            while (left_s := start_at - loop.time()) > 0:
                await self._pause(Answer(Verdict.QUOTA, left_s))
            while True:
                answer = await self.lane.desk.ask(self._ask(paid=True))
                if answer.verdict is Verdict.GO:
                    return
                await self._pause(answer)
        except BaseException:
            with contextlib.suppress(asyncio.CancelledError):
                await self.lane.desk.end(End(self.slot, Lesson.NOTHING, tokens=-self.tokens, requests=-1.0))
            raise

    async def _pause(self, answer: Answer) -> None:
        self._check(answer.wait_s if answer.verdict is not Verdict.BUSY else 0.0)
        if self.waits is not None:
            self.waits.waiting(self.slot, answer.wait_s)
        if answer.verdict is Verdict.BUSY:
            free = self.lane.place_free
            free.clear()
            with contextlib.suppress(TimeoutError):
                async with self.stop.within(answer.wait_s):
                    await free.wait()
            return
        # A little late, and not all processes in the same moment: the book leaves room for it.
        await self.stop.sleep(min(SLICE_S, answer.wait_s + random.uniform(LEAST_PAUSE_S, 0.01)))

    def _check(self, wait_s: float) -> None:
        self.stop.check()
        left_s = self.deadline - time.monotonic()
        if wait_s > left_s:
            raise self._turned_away(wait_s)
        if left_s <= 0:
            raise DeadlineExceeded("too many calls to this provider are under way")

    def _ask(self, *, paid: bool) -> Ask:
        patience_s = self.deadline - time.monotonic()
        return Ask(self.slot, self.lane.interactive, self.tokens, max(0.0, patience_s), paid)

    def _turned_away(self, wait_s: float) -> UpstreamRateLimited:
        return UpstreamRateLimited(
            "the quota of the account at the provider is used up for now", retry_after_s=wait_s, sent=False
        )
