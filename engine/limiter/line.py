"""The line before one account and upstream model, in this process: who starts next, who waits, who is turned away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.limiter import quota
from engine.limiter.book import BLIND_GATE_S, End, Lesson
from engine.limiter.desk import Desk
from engine.limiter.door import Door
from engine.limiter.pulse import Pulse
from engine.limiter.turn import Lane, Turn
from engine.limiter.waits import Waits
from engine.stop import Stop
from engine.telemetry import GATES_CLOSED, PACING_REFUSALS, PACING_WAIT_SECONDS, PLACES
from models.embedding import Account
from models.errors import (
    EmbedmillError,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from providers.quota_hints import QuotaHint

WATCH_S = 120.0  # how long all processes ask each other about an account without a quota after its last 429
NEARLY_SPENT = 0.003  # share of a quota that, by the provider's word, only somebody else can have used up
LEARNING = 0.2


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call. With a slot it is in the book, and `tokens` were charged."""

    slot: str = ""
    tokens: float = 0.0


UNPACED = Permit()


class Line:
    """Where there is a quota, or shared places, or lately was a 429, each call is asked for at the desk.

    Elsewhere only this process's places are counted.
    """

    def __init__(
        self, account: Account, model: str, desk: Desk, *, slot_prefix: str, tell: Callable[[str], None]
    ) -> None:
        self.name = f"{account.name}|{model}"
        self._account = account
        self._desk = desk
        self._slot_prefix = slot_prefix
        self._tell = tell  # lets the other processes know that this line is watched
        self._slots = 0
        self._learned: QuotaHint | None = None
        self.learned_tokens_per_call: int | None = None
        self._watched_until = 0.0  # on time.monotonic()
        self._pulse = Pulse()
        self._used_by_estimated = 1.0
        self._door = Door(account.max_concurrency)
        self._place_free = asyncio.Event()
        self._lanes = {
            interactive: Lane(desk, interactive, self._place_free, asyncio.Lock()) for interactive in (True, False)
        }
        self._ending: set[asyncio.Task[None]] = set()
        labels = (account.name, model)
        names = {True: "interactive", False: "bulk"}
        self._wait_seconds = {lane: PACING_WAIT_SECONDS.labels(*labels, name) for lane, name in names.items()}
        self._refusals = {lane: PACING_REFUSALS.labels(*labels, name) for lane, name in names.items()}
        self._gates = GATES_CLOSED.labels(*labels)
        self._places_gauge = PLACES.labels(*labels)
        self._places_gauge.set(account.max_concurrency)
        self._keep_to_quotas()

    @property
    def paced(self) -> bool:
        return self._desk.needed or (self._watched_until > 0.0 and time.monotonic() < self._watched_until)

    def watch(self, seconds: float) -> None:
        """Ask at the desk for the next while: some process was answered 429."""
        self._watched_until = max(self._watched_until, time.monotonic() + seconds)
        self._door.send_elsewhere()

    def at_once(self) -> Permit | None:
        """A permit for a call that nobody needs to be asked about; None: `enter` decides."""
        return UNPACED if not self.paced and self._door.at_once() else None

    async def enter(
        self,
        tokens: int,
        *,
        interactive: bool,
        deadline: float,
        stop: Stop | None = None,
        waits: Waits | None = None,
    ) -> Permit:
        """Wait for leave to make a call of so many estimated tokens. `deadline` is on time.monotonic().

        Raises UpstreamRateLimited, at once and saying how long, when the wait would pass the deadline; DeadlineExceeded
        when it has passed for want of a place, or the `stop` was given.
        """
        stop = stop or Stop()
        while not self.paced:
            if self._door.at_once() or await self._door.wait(deadline, stop):
                return UNPACED
        self._slots += 1
        permit = Permit(f"{self._slot_prefix}-{self._slots}", max(1.0, tokens * self._used_by_estimated))
        # The call itself takes its time too: a start at the deadline would be in vain.
        left_s = deadline - time.monotonic()
        start_by = deadline - min(self._pulse.usual_s, left_s / 2)
        began = asyncio.get_running_loop().time()
        may_start = False
        try:
            await Turn(self._lanes[interactive], permit.slot, permit.tokens, start_by, stop, waits).take()
            may_start = True
        except UpstreamRateLimited:
            self._refusals[interactive].inc()
            raise
        finally:
            if waits is not None:
                waits.over(permit.slot, may_start=may_start)
        self._wait_seconds[interactive].observe(asyncio.get_running_loop().time() - began)
        return permit

    def leave(
        self,
        permit: Permit,
        *,
        seconds: float,
        estimated: int,
        used: int | None,
        error: BaseException | None,
        hint: QuotaHint | None,
    ) -> None:
        """The call has ended: give its place back, settle what it cost, learn from it. Never waits."""
        lesson = self._lesson(error, seconds)
        if hint is not None and (self._learned is None or hint.limits != self._learned.limits):
            self._learned = hint
            self._keep_to_quotas()
        if permit is UNPACED:
            self._door.leave(lesson)
            if lesson is not Lesson.LIMITED:
                return
        end = self._end_of(permit, lesson, estimated, used, error, hint)
        if lesson is Lesson.LIMITED:
            self._gates.inc()
            self.watch(WATCH_S)
            self._desk.close_gate(end.gate_s if end.gate_s is not None else BLIND_GATE_S)
            if not self._desk.limited:
                self._tell(self.name)
        ending = asyncio.create_task(self._end(end))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Wait until all places are given back."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _end_of(
        self,
        permit: Permit,
        lesson: Lesson,
        estimated: int,
        used: int | None,
        error: BaseException | None,
        hint: QuotaHint | None,
    ) -> End:
        change = 0.0
        if error is None and used is not None:
            change = used - permit.tokens
            if estimated:
                seen = min(max(used / estimated, 0.2), 5.0)
                self._used_by_estimated += (seen - self._used_by_estimated) * LEARNING
        elif lesson in (Lesson.LIMITED, Lesson.ANSWERED) or _never_sent(error):
            change = -permit.tokens  # an answer without vectors is not billed
        gate_s = error.retry_after_s if isinstance(error, UpstreamRateLimited) else None
        if gate_s is not None:  # not all who were told the same moment come back in it
            gate_s += random.uniform(0, 0.1 + gate_s / 10)
        charged = permit is not UNPACED
        return End(
            permit.slot,
            lesson,
            tokens=change if charged else 0.0,
            requests=-1.0 if charged and _never_sent(error) else 0.0,
            gate_s=gate_s,
            jitter=random.random(),
            brake=hint is not None and self._desk.limited and hint.nearly_spent(NEARLY_SPENT),
        )

    async def _end(self, end: End) -> None:
        await self._desk.end(end)
        self._place_free.set()
        self._places_gauge.set(self._desk.places)

    def _lesson(self, error: BaseException | None, seconds: float) -> Lesson:
        if error is None:
            return Lesson.SLOW if self._pulse.felt(seconds) else Lesson.WELL
        if isinstance(error, UpstreamRateLimited):
            return Lesson.LIMITED
        if isinstance(error, UpstreamTimeout):
            return Lesson.STRAINED
        if isinstance(error, UpstreamOverloaded) or (isinstance(error, UpstreamUnavailable) and error.status is None):
            return Lesson.STRAINED
        answered = isinstance(error, UpstreamError) and error.status is not None
        return Lesson.ANSWERED if answered else Lesson.NOTHING

    def _keep_to_quotas(self) -> None:
        learned = self._learned.limits if self._learned else (None, None)
        requests = quota.tightest(self._account.requests_per_minute, learned[0])
        tokens = quota.tightest(self._account.tokens_per_minute, learned[1])
        self._desk.keep_to(quota.of_tokens(tokens), quota.of_requests(requests))
        if self._learned is not None:
            self.learned_tokens_per_call = quota.largest_call(tokens, requests)
        if self._desk.needed:
            self._door.send_elsewhere()


def _never_sent(error: BaseException | None) -> bool:
    """True for a call that surely cost nothing: our own side stopped it, or it found no connection."""
    return not error.sent if isinstance(error, UpstreamError) else isinstance(error, EmbedmillError)
