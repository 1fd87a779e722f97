"""The calls of one shard that wait for their start or their reply; what its job reports to whoever polls it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from engine.limiter.learned_timeout import LearnedTimeout
from models.embedding import Route
from models.errors import UpstreamError, UpstreamTimeout

BLOCKED_AFTER_S = 1.0  # shorter waits are not reported
QUOTA = "quota"
CONCURRENCY = "concurrency"
LATE_S = 10.0  # where the usual latency of the route is not known


@dataclass(slots=True, eq=False)
class UnansweredCall:
    """A call that was sent and has no complete reply yet. Instants on the event loop's clock, except `since`."""

    route: Route
    tokens: int
    learned_timeout: LearnedTimeout
    began: float
    since: float  # unix seconds
    limit: asyncio.Timeout

    @property
    def age_s(self) -> float:
        """Seconds since it was sent."""
        return asyncio.get_running_loop().time() - self.began

    @property
    def late_s(self) -> float:
        """The age at which it is late."""
        return self.learned_timeout.late_s(self.tokens) or LATE_S

    @property
    def is_late(self) -> bool:
        """True when it takes far longer than usual."""
        return self.age_s >= self.late_s

    @property
    def is_overdue(self) -> bool:
        """True when it is late by the known latency of the route, even if that has become slow."""
        return self.learned_timeout.is_known and self.age_s >= self.late_s * self.learned_timeout.slack

    def give_up(self) -> None:
        """End the call as timed out. Does nothing if it is being ended already."""
        if self.limit.when() is None:
            self.limit.reschedule(asyncio.get_running_loop().time())


class CallWaits:
    """The waits for a start that are under way, and the one that ended last. Instants on time.monotonic()."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._next_at = 0.0
        self._blocked_until = 0.0
        self._reason = QUOTA
        self.cause: UpstreamError | None = None  # of the last wait, where only this caller waits
        self.cause_since = 0.0  # unix seconds
        self.shown: str | None = None  # the reason in the job's row, as far as this shard wrote it
        # True when the wait that ended last ended without a start.
        self.last_was_refused = False
        self._unanswered: set[UnansweredCall] = set()
        self.checks: set[asyncio.Task[None]] = set()  # hang checks of this run's calls
        # Called with each call that is sent; returns a function to be called at its end, with True if it was answered.
        self.on_sent: Callable[[UnansweredCall], Callable[[bool], None]] | None = None

    @asynccontextmanager
    async def for_answer(self, route: Route, tokens: int, learned_timeout: LearnedTimeout) -> AsyncIterator[None]:
        """Around the sending of one call. Raises UpstreamTimeout when a hang check has given the call up."""
        if self.on_sent is None:
            yield
            return
        limit = asyncio.timeout(None)
        try:
            async with limit:
                call = UnansweredCall(
                    route, tokens, learned_timeout, asyncio.get_running_loop().time(), time.time(), limit
                )
                self._unanswered.add(call)
                on_end = self.on_sent(call)
                is_answered = False
                try:
                    yield
                    is_answered = True
                finally:
                    self._unanswered.discard(call)
                    on_end(is_answered)
        except TimeoutError:
            if not limit.expired():
                raise
            raise UpstreamTimeout("the upstream gave no answer for far longer than usual") from None

    @property
    def unanswered(self) -> int:
        """Number of calls that were sent and have no reply yet."""
        return len(self._unanswered)

    def late_call(self) -> UnansweredCall | None:
        """The oldest call without a reply, if all of them are late."""
        if not self._unanswered or not all(call.is_late for call in self._unanswered):
            return None
        return min(self._unanswered, key=lambda call: call.began)

    def begin(self, slot: str) -> None:
        """A call begins to wait."""
        self._began.setdefault(slot, time.monotonic())

    def waiting(self, slot: str, wait_s: float, *, reason: str = QUOTA, cause: UpstreamError | None = None) -> None:
        """A call waits for this reason, and asks again in so many seconds."""
        self.begin(slot)
        if (cause is None) != (self.cause is None):
            self.cause_since = time.time()
        self.cause = cause
        self._next_at = time.monotonic() + wait_s
        self._reason = reason

    def end(self, slot: str, *, may_start: bool) -> None:
        """A call has ended its wait; False: without being allowed to start."""
        now = time.monotonic()
        self.last_was_refused = not may_start
        began = self._began.pop(slot, now)
        if now - began >= BLOCKED_AFTER_S:
            self._blocked_until = now + BLOCKED_AFTER_S

    @property
    def reason(self) -> str:
        """The reason of the last wait."""
        return self._reason

    def blocked_for_s(self) -> float | None:
        """Seconds until a call may start, where calls have been waiting for longer than a moment; else None."""
        now = time.monotonic()
        oldest = min(self._began.values(), default=now)
        if now - oldest < BLOCKED_AFTER_S and now >= self._blocked_until:
            return None
        return max(0.0, self._next_at - now)
