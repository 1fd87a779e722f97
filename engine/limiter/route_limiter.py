"""The line before one account and upstream model, in this process: who starts next, who waits, who is turned away."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.cancellation import CancellationToken
from engine.limiter import quota
from engine.limiter.acquire import AcquireQueue, PacedAcquire
from engine.limiter.bucket import DEFAULT_COOLDOWN_S, CallResult, CallSignal
from engine.limiter.call_waits import CONCURRENCY, CallWaits
from engine.limiter.concurrency import AdaptiveSemaphore
from engine.limiter.congestion import CongestionDetector
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.fair_queue import FairLock
from engine.limiter.latency import Latency
from engine.limiter.learned_quota import KINDS
from engine.limiter.max_wait import UNBOUNDED, Patience
from engine.observability.telemetry import (
    LIMITER_REFUSALS,
    LIMITER_WAIT_SECONDS,
    PLACES,
    QUOTA_SHARE,
    RATE_LIMIT_COOLDOWNS,
)
from models.embedding import Account
from models.errors import (
    EmbedmillError,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from providers.rate_limit_headers import RateLimitHeaders

WATCH_S = 120.0  # how long all processes ask each other about an account without a quota after its last 429
QUOTA_NEARLY_SPENT = 0.003  # share of a quota that, by the provider's word, only somebody else can have used up
LEARNING = 0.2
TAKEN = frozenset({CallSignal.WELL, CallSignal.SLOW, CallSignal.ANSWERED, CallSignal.STRAINED})
LOOK_AT_LIMIT_S = 1.0
LONG_WAIT_S = 5.0
SHARE_STEP = 0.01  # smaller changes of a learned share change no sizes and no metric

log = logging.getLogger("embedmill.pacing")

Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call. With a slot it is in the book, and `tokens` were charged."""

    slot: str = ""
    tokens: float = 0.0


UNPACED = Permit()


class RouteLimiter:
    """Where there is a quota, or shared places, or lately was a 429, each call is asked for at the desk.

    Elsewhere only this process's places are counted.
    """

    def __init__(
        self, account: Account, model: str, desk: BucketCoordinator, *, slot_prefix: str, tell: Callable[[str], None]
    ) -> None:
        self.name = f"{account.name}|{model}"
        self._model = model
        self._account = account
        self._desk = desk
        self._slot_prefix = slot_prefix
        self._tell = tell  # lets the other processes know that this line is watched
        self._slots = 0
        self._learned: RateLimitHeaders | None = None
        self.learned_tokens_per_call: int | None = None
        self._watched_until = 0.0  # on time.monotonic()
        self._troubles = CongestionDetector()
        self._latency = Latency()
        self._used_by_estimated = 1.0
        self._door = AdaptiveSemaphore(account.max_concurrency)
        self._place_free = asyncio.Event()
        self._lanes = {
            interactive: AcquireQueue(account.name, model, desk, interactive, self._place_free, FairLock())
            for interactive in (True, False)
        }
        self._ending: set[asyncio.Task[None]] = set()
        labels = (account.name, model)
        names = {True: "interactive", False: "bulk"}
        self._wait_seconds = {lane: LIMITER_WAIT_SECONDS.labels(*labels, name) for lane, name in names.items()}
        self._refusals = {lane: LIMITER_REFUSALS.labels(*labels, name) for lane, name in names.items()}
        self._gates = RATE_LIMIT_COOLDOWNS.labels(*labels)
        self._places_gauge = PLACES.labels(*labels)
        self._places_gauge.set(account.max_concurrency)
        self._share_gauges = [QUOTA_SHARE.labels(*labels, kind) for kind in KINDS]
        for gauge in self._share_gauges:
            gauge.set(1.0)
        self._shares = self._shares_told = (1.0, 1.0)  # of the quotas of tokens and requests: learned from 429s
        self._quotas: tuple[int | None, int | None] = (None, None)
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
        tenant: str = "",
        stop: CancellationToken | None = None,
        waits: CallWaits | None = None,
        patience: Patience = UNBOUNDED,
    ) -> Permit:
        """Wait for leave to make a call of so many estimated tokens. `deadline` is on time.monotonic().

        Calls of one tenant wait in their order, and tenants have their turns.

        Raises UpstreamRateLimited, at once and saying how long, when the wait would pass the deadline or the patience;
        DeadlineExceeded when it has passed for want of a place, or the `stop` was given.
        """
        stop = stop or CancellationToken()
        if patience.beyond_places and not self._desk.limited and self._desk.gate_s() == 0.0:
            self._door.under_way += 1
            return UNPACED
        while not self.paced:
            if self._door.at_once() or await self._wait_at_door(deadline, stop, waits, tenant):
                return UNPACED
        self._slots += 1
        permit = Permit(f"{self._slot_prefix}-{self._slots}", max(1.0, tokens * self._used_by_estimated))
        # The call itself takes its time too: a start at the deadline would be in vain.
        left_s = deadline - time.monotonic()
        start_by = deadline - min(self._troubles.usual_s, left_s / 2)
        began = asyncio.get_running_loop().time()
        may_start = False
        try:
            lane = self._lanes[interactive]
            turn = PacedAcquire(lane, permit.slot, permit.tokens, start_by, stop, waits, patience, tenant=tenant)
            await turn.take()
            may_start = True
        except UpstreamRateLimited:
            self._refusals[interactive].inc()
            raise
        finally:
            if waits is not None:
                waits.over(permit.slot, may_start=may_start)
            self._learn_shares()
        self._wait_seconds[interactive].observe(asyncio.get_running_loop().time() - began)
        return permit

    async def _wait_at_door(
        self, deadline: float, stop: CancellationToken, waits: CallWaits | None, tenant: str
    ) -> bool:
        if waits is None:
            return await self._door.wait(deadline, stop, tenant)
        self._slots += 1
        name, may_start = f"door-{self._slots}", False
        waits.waiting(name, 0.0, reason=CONCURRENCY)
        try:
            may_start = await self._door.wait(deadline, stop, tenant)
        finally:
            waits.over(name, may_start=may_start)
            waits.in_vain = False  # a place that was not free is no quota that was used up
        return may_start

    def leave(
        self,
        permit: Permit,
        *,
        seconds: float,
        estimated: int,
        used: int | None,
        error: BaseException | None,
        hint: RateLimitHeaders | None,
        is_doubted: bool = False,
        is_ours: bool = False,
        tenant: str = "",
    ) -> None:
        """The call has ended: give its place back, settle what it cost, learn from it. Never waits.

        `is_doubted`: a 429 may be due to its caller's options or text. `is_ours`: nothing of a caller is in it. A 429
        that is doubted, or a long one to a caller's text, shuts the gate for nobody: a call of ours asks whether it is
        everybody's, and shuts it then.
        """
        lesson = self._lesson(error, seconds, tenant)
        if error is None:
            self._latency.succeeded(seconds, estimated)
        elif isinstance(error, UpstreamTimeout) and error.sent:
            self._latency.timed_out(estimated)
        if isinstance(error, UpstreamRateLimited) and lesson is CallSignal.LIMITED:
            error.shut_gate = not is_doubted and (is_ours or not is_long_wait(error))
            lesson = lesson if error.shut_gate else CallSignal.NOTHING
        if hint is not None and (self._learned is None or hint.limits != self._learned.limits):
            self._learned = hint
            self._keep_to_quotas()
        if permit is UNPACED:
            self._door.leave(lesson)
            if lesson is not CallSignal.LIMITED:
                return
        end = self._end_of(permit, lesson, estimated, used, error, hint)
        if lesson is CallSignal.LIMITED:
            self._gates.inc()
            self.watch(WATCH_S)
            self._desk.close_gate(end.gate_s if end.gate_s is not None else DEFAULT_COOLDOWN_S)
            if not self._desk.limited:
                self._tell(self.name)
        ending = asyncio.create_task(self._end(end))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    @property
    def latency(self) -> Latency:
        return self._latency

    @property
    def knows_limit(self) -> bool:
        return self._latency.is_known

    def timeout_s(self, tokens: int) -> float:
        """How long a call of so many tokens may take: far more than calls have taken, once that is known."""
        return min(self._account.timeout_s, self._latency.timeout_s(tokens))

    def sure_timeout_s(self, tokens: int) -> float:
        """The same, of which nothing that is learned while the call is under way makes less."""
        return self.timeout_s(tokens) if self.knows_limit else self._account.timeout_s

    async def within_limit(self, call: Coroutine[Any, Any, Reply], tokens: int) -> Reply:
        """The reply to a call whose limit was not known when it began: the limit counts once others have shown it."""
        loop = asyncio.get_running_loop()
        began, task = loop.time(), asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=LOOK_AT_LIMIT_S))[0]:
                if loop.time() - began > self.timeout_s(tokens):
                    raise UpstreamTimeout("the upstream did not finish its reply in time")
            return task.result()
        finally:
            task.cancel()

    async def close(self) -> None:
        """Wait until all places are given back."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _end_of(
        self,
        permit: Permit,
        lesson: CallSignal,
        estimated: int,
        used: int | None,
        error: BaseException | None,
        hint: RateLimitHeaders | None,
    ) -> CallResult:
        change = 0.0
        if error is None and used is not None:
            change = used - permit.tokens
            if estimated:
                seen = min(max(used / estimated, 0.2), 5.0)
                self._used_by_estimated += (seen - self._used_by_estimated) * LEARNING
        elif isinstance(error, UpstreamRateLimited) or lesson is CallSignal.ANSWERED or _never_sent(error):
            change = -permit.tokens  # an answer without vectors is not billed
        gate_s = error.retry_after_s if isinstance(error, UpstreamRateLimited) else None
        if gate_s is not None:  # not all who were told the same moment come back in it
            gate_s += random.uniform(0, 0.1 + gate_s / 10)
        charged = permit is not UNPACED
        return CallResult(
            permit.slot,
            lesson,
            tokens=change if charged else 0.0,
            requests=-1.0 if charged and _never_sent(error) else 0.0,
            gate_s=gate_s,
            jitter=random.random(),
            accepted=permit.tokens + change if charged and lesson in TAKEN and not _never_sent(error) else None,
            kind=error.quota if isinstance(error, UpstreamRateLimited) else "",
            brake=hint is not None and self._desk.limited and hint.nearly_spent(QUOTA_NEARLY_SPENT),
        )

    async def _end(self, end: CallResult) -> None:
        await self._desk.end(end)
        self._place_free.set()
        self._places_gauge.set(self._desk.places)
        self._learn_shares()

    def _lesson(self, error: BaseException | None, seconds: float, tenant: str) -> CallSignal:
        now = time.monotonic()
        if error is None:
            return CallSignal.SLOW if self._troubles.is_slow(tenant, seconds, now) else CallSignal.WELL
        if isinstance(error, UpstreamRateLimited):
            return CallSignal.LIMITED
        if isinstance(error, UpstreamTimeout | UpstreamOverloaded) or (
            isinstance(error, UpstreamUnavailable) and error.status is None
        ):
            return CallSignal.STRAINED if self._troubles.is_shared(tenant, now) else CallSignal.NOTHING
        answered = isinstance(error, UpstreamError) and error.status is not None
        return CallSignal.ANSWERED if answered else CallSignal.NOTHING

    def _keep_to_quotas(self) -> None:
        learned = self._learned.limits if self._learned else (None, None)
        requests = quota.tightest(self._account.requests_per_minute, learned[0])
        tokens = quota.tightest(self._account.tokens_per_minute, learned[1])
        self._desk.keep_to(quota.of_tokens(tokens), quota.of_requests(requests))
        self._quotas = (tokens, requests)
        self._size_calls()
        if self._desk.needed:
            self._door.send_elsewhere()

    def _learn_shares(self) -> None:
        """What 429s have shown, to this process or another, since it was looked at last."""
        shares, known = self._desk.shares, self._shares
        if shares == known or (max(shares) < 1.0 and _apart(shares, known) < SHARE_STEP):
            return
        self._shares = shares
        self._size_calls()
        for share, gauge in zip(shares, self._share_gauges, strict=True):
            gauge.set(share)
        tokens, requests = self._kept_quotas()
        extra = {
            "provider": self._account.name,
            "model": self._model,
            "tokens_per_minute": tokens,
            "requests_per_minute": requests,
        }
        if any(new < old - SHARE_STEP for new, old in zip(shares, self._shares_told, strict=True)):
            self._shares_told = shares
            log.warning("a provider refuses calls below its stated quota: all calls keep to less for now", extra=extra)
        elif min(shares) >= 1.0:
            self._shares_told = shares
            log.info("the whole stated quota of a provider is used again", extra=extra)

    def _kept_quotas(self) -> tuple[int | None, int | None]:
        """Tokens and requests a minute, to which calls keep."""
        tokens, requests = (
            limit and max(1, int(limit * share)) for limit, share in zip(self._quotas, self._shares, strict=True)
        )
        return tokens, requests

    def _size_calls(self) -> None:
        """Calls of bulk must be small against the quota, also where that was learned."""
        is_learned = self._learned is not None or min(self._shares) < 1.0
        self.learned_tokens_per_call = quota.largest_call(*self._kept_quotas()) if is_learned else None


def _apart(shares: tuple[float, float], others: tuple[float, float]) -> float:
    return max(abs(shares[0] - others[0]), abs(shares[1] - others[1]))


def is_long_wait(error: BaseException | None) -> bool:
    """A 429 that asks for more than a few seconds: too long to believe one caller's text without a call of ours."""
    wait_s = error.retry_after_s if isinstance(error, UpstreamRateLimited) and error.sent else None
    return wait_s is not None and wait_s > LONG_WAIT_S


def _never_sent(error: BaseException | None) -> bool:
    """True for a call that surely cost nothing: our own side stopped it, or it found no connection."""
    return not error.sent if isinstance(error, UpstreamError) else isinstance(error, EmbedmillError)
