"""Which calls of one shard wait for their start or answer, and for how long: its job says so while nothing lands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from engine.limiter.latency import Latency
from models.embedding import Route
from models.errors import UpstreamError, UpstreamTimeout

BLOCKED_AFTER_S = 1.0  # shorter waits are no news
QUOTA = "quota"
CONCURRENCY = "concurrency"
LATE_S = 10.0  # where it is not known how long calls of the route take


@dataclass(slots=True, eq=False)
class Unanswered:
    """A call that was sent and has no whole answer yet. Instants on the event loop's clock, but for `since`."""

    route: Route
    tokens: int
    latency: Latency
    began: float
    since: float  # unix seconds
    limit: asyncio.Timeout

    @property
    def age_s(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    @property
    def late_s(self) -> float:
        return self.latency.late_s(self.tokens) or LATE_S

    @property
    def is_late(self) -> bool:
        return self.age_s >= self.late_s

    @property
    def is_overdue(self) -> bool:
        """Late by what is known of the route, also where it has become slow."""
        return self.latency.is_known and self.age_s >= self.late_s * self.latency.slack

    def give_up(self) -> None:
        """End the call, as one that timed out. One that is ending anyway is left alone."""
        if self.limit.when() is None:
            self.limit.reschedule(asyncio.get_running_loop().time())


class CallWaits:
    """The waits for a start that are under way, and the one that ended last. On time.monotonic()."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._next_at = 0.0
        self._held_up_until = 0.0
        self._reason = QUOTA
        self.cause: UpstreamError | None = None  # of the wait that was told last, where only this caller waits
        self.cause_since = 0.0  # unix seconds
        self.shown: str | None = None  # what the job's row says of it, as far as this shard wrote it
        # True while the wait that ended last was ended by something else than its turn.
        self.in_vain = False
        self._unanswered: set[Unanswered] = set()
        self.looks: set[asyncio.Task[None]] = set()  # at calls of the run that are late
        # Called with each call that is sent; what it returns is called at its end, with whether it was answered.
        self.on_sent: Callable[[Unanswered], Callable[[bool], None]] | None = None

    @asynccontextmanager
    async def for_answer(self, route: Route, tokens: int, latency: Latency) -> AsyncIterator[None]:
        """Around the sending of one call. Raises UpstreamTimeout when whoever watches it has given it up."""
        if self.on_sent is None:
            yield
            return
        limit = asyncio.timeout(None)
        try:
            async with limit:
                call = Unanswered(route, tokens, latency, asyncio.get_running_loop().time(), time.time(), limit)
                self._unanswered.add(call)
                ended = self.on_sent(call)
                is_answered = False
                try:
                    yield
                    is_answered = True
                finally:
                    self._unanswered.discard(call)
                    ended(is_answered)
        except TimeoutError:
            if not limit.expired():
                raise
            raise UpstreamTimeout("the upstream gave no answer for far longer than usual") from None

    @property
    def unanswered(self) -> int:
        return len(self._unanswered)

    def late_call(self) -> Unanswered | None:
        """The call that has been without an answer the longest, where all calls under way are late."""
        if not self._unanswered or not all(call.is_late for call in self._unanswered):
            return None
        return min(self._unanswered, key=lambda call: call.began)

    def begun(self, slot: str) -> None:
        """This call waits from now on: for its turn, as long as others wait before it."""
        self._began.setdefault(slot, time.monotonic())

    def waiting(self, slot: str, wait_s: float, *, reason: str = QUOTA, cause: UpstreamError | None = None) -> None:
        """This call waits for that reason, and will ask again in so many seconds."""
        self.begun(slot)
        if (cause is None) != (self.cause is None):
            self.cause_since = time.time()
        self.cause = cause
        self._next_at = time.monotonic() + wait_s
        self._reason = reason

    def over(self, slot: str, *, may_start: bool) -> None:
        now = time.monotonic()
        self.in_vain = not may_start
        began = self._began.pop(slot, now)
        if now - began >= BLOCKED_AFTER_S:
            self._held_up_until = now + BLOCKED_AFTER_S

    @property
    def reason(self) -> str:
        """What calls waited for last."""
        return self._reason

    def blocked_for_s(self) -> float | None:
        """Seconds until a call may start, where calls have been waiting for longer than a moment; else None."""
        now = time.monotonic()
        oldest = min(self._began.values(), default=now)
        if now - oldest < BLOCKED_AFTER_S and now >= self._held_up_until:
            return None
        return max(0.0, self._next_at - now)
