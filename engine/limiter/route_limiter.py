"""Rate limiter of one account and upstream model in this process: admits calls, and learns from how they end."""

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
from engine.limiter.learned_quota import QUOTA_KINDS
from engine.limiter.learned_timeout import LearnedTimeout
from engine.limiter.max_wait import UNBOUNDED, MaxWait
from engine.observability.telemetry import (
    CONCURRENCY_LIMIT,
    LIMITER_REFUSALS,
    LIMITER_WAIT_SECONDS,
    QUOTA_SHARE,
    RATE_LIMIT_COOLDOWNS,
)
from engine.planning.token_estimator import TokenEstimator
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

PACE_AFTER_429_S = 120.0  # after a 429 all processes share the state of an account without a quota for so long
QUOTA_NEARLY_SPENT = 0.003  # if headers report less of a quota left than this share, another client shares the quota
ACCEPTED_SIGNALS = frozenset({CallSignal.SUCCESS, CallSignal.SLOW, CallSignal.CLIENT_ERROR, CallSignal.OVERLOADED})
TIMEOUT_CHECK_EVERY_S = 1.0
LONG_RETRY_AFTER_S = 5.0
MINUTE_S = 60.0
SHARE_STEP = 0.01  # smaller changes of a learned share change no sizes and no metric

log = logging.getLogger("embedmill.limiter")

Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission to make one call. With a slot it is known to the coordinator, and `tokens` were charged."""

    slot: str = ""
    tokens: float = 0.0


NO_PERMIT_NEEDED = Permit()


class RouteLimiter:
    """Admits the calls of one account and upstream model.

    Calls are acquired from the coordinator where there is a quota, a concurrency limit of all processes, or a recent
    429. Elsewhere only this process's semaphore counts.
    """

    def __init__(
        self,
        account: Account,
        model: str,
        coordinator: BucketCoordinator,
        estimator: TokenEstimator,
        *,
        slot_prefix: str,
        announce: Callable[[str], None],
    ) -> None:
        """`announce` is called with the limiter's name after a 429, to tell the other processes."""
        self.name = f"{account.name}|{model}"
        self._model = model
        self._account = account
        self.coordinator = coordinator
        self._estimator = estimator
        self._slot_prefix = slot_prefix
        self._announce = announce
        self._last_slot = 0
        self._rate_limits: RateLimitHeaders | None = None  # the quotas that the provider's replies stated last
        self._rate_limits_at = 0.0  # on time.monotonic()
        self.max_learned_call_tokens: int | None = None
        self._paced_until = 0.0  # on time.monotonic()
        self._congestion = CongestionDetector()
        self.learned_timeout = LearnedTimeout()
        self._semaphore = AdaptiveSemaphore(account.max_concurrency)
        self._slot_freed = asyncio.Event()
        self._queues = {
            interactive: AcquireQueue(account.name, model, coordinator, interactive, self._slot_freed, FairLock())
            for interactive in (True, False)
        }
        self._settling: set[asyncio.Task[None]] = set()
        labels = (account.name, model)
        lanes = {True: "interactive", False: "bulk"}
        self._wait_seconds = {key: LIMITER_WAIT_SECONDS.labels(*labels, lane) for key, lane in lanes.items()}
        self._refusals = {key: LIMITER_REFUSALS.labels(*labels, lane) for key, lane in lanes.items()}
        self._cooldowns = RATE_LIMIT_COOLDOWNS.labels(*labels)
        self._limit_gauge = CONCURRENCY_LIMIT.labels(*labels)
        self._limit_gauge.set(account.max_concurrency)
        self._share_gauges = [QUOTA_SHARE.labels(*labels, kind) for kind in QUOTA_KINDS]
        for gauge in self._share_gauges:
            gauge.set(1.0)
        # Shares of the quotas of tokens and requests, learned from 429s: now, and as logged last.
        self._shares = self._logged_shares = (1.0, 1.0)
        self._quotas: tuple[int | None, int | None] = (None, None)
        self._apply_quotas()

    @property
    def is_paced(self) -> bool:
        """True while each call must be acquired from the coordinator."""
        return self.coordinator.is_needed or (self._paced_until > 0.0 and time.monotonic() < self._paced_until)

    def pace_for(self, seconds: float) -> None:
        """Acquire calls from the coordinator for so long, because some process had a 429."""
        self._paced_until = max(self._paced_until, time.monotonic() + seconds)
        self._semaphore.redirect_waiters()

    def try_acquire(self) -> Permit | None:
        """A permit where the call need not wait or be charged. None: call `acquire`."""
        return NO_PERMIT_NEEDED if not self.is_paced and self._semaphore.try_acquire() else None

    async def acquire(
        self,
        tokens: int,
        *,
        interactive: bool,
        deadline: float,
        tenant: str = "",
        stop: CancellationToken | None = None,
        waits: CallWaits | None = None,
        max_wait: MaxWait = UNBOUNDED,
    ) -> Permit:
        """Wait until a call of so many estimated tokens may start. `deadline` is on time.monotonic().

        Tenants are served in turn, the calls of one tenant in their order. Raises UpstreamRateLimited, at once and with
        `retry_after_s`, when the wait would pass the deadline or `max_wait`; DeadlineExceeded when the deadline has
        passed without a free slot, or when `stop` is cancelled.
        """
        stop = stop or CancellationToken()
        if max_wait.ignores_concurrency and not self.coordinator.has_quota and self.coordinator.cooldown_s() == 0.0:
            self._semaphore.in_use += 1
            return NO_PERMIT_NEEDED
        while not self.is_paced:
            if self._semaphore.try_acquire() or await self._wait_for_semaphore(deadline, stop, waits, tenant):
                return NO_PERMIT_NEEDED
        self._last_slot += 1
        permit = Permit(f"{self._slot_prefix}-{self._last_slot}", self._estimator.charge(tokens))
        # The call takes time too: one that started at the deadline could not end in time.
        left_s = deadline - time.monotonic()
        start_by = deadline - min(self._congestion.baseline_s, left_s / 2)
        began = asyncio.get_running_loop().time()
        may_start = False
        try:
            queue = self._queues[interactive]
            call = PacedAcquire(queue, permit.slot, permit.tokens, start_by, stop, waits, max_wait, tenant=tenant)
            await call.run()
            may_start = True
        except UpstreamRateLimited:
            self._refusals[interactive].inc()
            raise
        finally:
            if waits is not None:
                waits.end(permit.slot, may_start=may_start)
            self._read_shares()
        self._wait_seconds[interactive].observe(asyncio.get_running_loop().time() - began)
        return permit

    async def _wait_for_semaphore(
        self, deadline: float, stop: CancellationToken, waits: CallWaits | None, tenant: str
    ) -> bool:
        if waits is None:
            return await self._semaphore.wait(deadline, stop, tenant)
        self._last_slot += 1
        name, may_start = f"semaphore-{self._last_slot}", False
        waits.waiting(name, 0.0, reason=CONCURRENCY)
        try:
            may_start = await self._semaphore.wait(deadline, stop, tenant)
        finally:
            waits.end(name, may_start=may_start)
            waits.last_was_refused = False  # the concurrency limit is no quota that was used up
        return may_start

    def release(
        self,
        permit: Permit,
        *,
        seconds: float,
        estimated: int,
        used: int | None,
        error: BaseException | None,
        hint: RateLimitHeaders | None,
        needs_confirmation: bool = False,
        is_control: bool = False,
        tenant: str = "",
    ) -> None:
        """A call has ended: free its slot, correct its cost, adapt to its outcome. Never waits.

        `estimated`, `used`: tokens. `is_control`: the call carried nothing of a caller. A 429 that needs confirmation,
        because the caller's options or text may be its cause, or one with a long Retry-After to a caller's text, starts
        no cooldown: a control call shows whether all calls meet it, and starts the cooldown if so.
        """
        signal = self._signal_of(error, seconds, tenant)
        if error is None:
            self.learned_timeout.record_success(seconds, estimated)
        elif isinstance(error, UpstreamTimeout) and error.sent:
            self.learned_timeout.record_timeout(estimated)
        if isinstance(error, UpstreamRateLimited) and signal is CallSignal.RATE_LIMITED:
            error.starts_cooldown = not needs_confirmation and (is_control or not has_long_retry_after(error))
            signal = signal if error.starts_cooldown else CallSignal.NONE
        if hint is not None:
            is_new = self._rate_limits is None or hint.limits != self._rate_limits.limits
            self._rate_limits, self._rate_limits_at = hint, time.monotonic()
            if is_new:
                self._apply_quotas()
        if permit is NO_PERMIT_NEEDED:
            self._semaphore.release(signal)
            if signal is not CallSignal.RATE_LIMITED:
                return
        result = self._result_of(permit, signal, estimated, used, error, hint)
        if signal is CallSignal.RATE_LIMITED:
            self._cooldowns.inc()
            self.pace_for(PACE_AFTER_429_S)
            self.coordinator.start_cooldown(result.cooldown_s if result.cooldown_s is not None else DEFAULT_COOLDOWN_S)
            if not self.coordinator.has_quota:
                self._announce(self.name)
        task = asyncio.create_task(self._settle(result))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    def timeout_s(self, tokens: int) -> float:
        """Timeout of a call of so many tokens: the learned one where it is known, at most the account's."""
        return min(self._account.timeout_s, self.learned_timeout.timeout_s(tokens))

    def initial_timeout_s(self, tokens: int) -> float:
        """Timeout of a call that begins now; the account's while none is learned (see `with_learned_timeout`)."""
        return self.timeout_s(tokens) if self.learned_timeout.is_known else self._account.timeout_s

    async def with_learned_timeout(self, call: Coroutine[Any, Any, Reply], tokens: int) -> Reply:
        """Await a call that began before a timeout was learned, and apply the timeout as soon as it is.

        Raises UpstreamTimeout, and what the call raises.
        """
        loop = asyncio.get_running_loop()
        began, task = loop.time(), asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=TIMEOUT_CHECK_EVERY_S))[0]:
                if loop.time() - began > self.timeout_s(tokens):
                    raise UpstreamTimeout("the upstream did not finish its reply in time")
            return task.result()
        finally:
            task.cancel()

    def quotas(self) -> RateLimitHeaders:
        """The quotas that calls keep to, and what the provider's latest reply, of the last minute, left of them."""
        tokens, requests = self._effective_quotas()
        is_recent = time.monotonic() < self._rate_limits_at + MINUTE_S
        stated = self._rate_limits if is_recent and self._rate_limits else RateLimitHeaders()
        return RateLimitHeaders(requests, tokens, stated.requests_left, stated.tokens_left)

    async def close(self) -> None:
        """Wait until all ended calls are settled."""
        await asyncio.gather(*self._settling, return_exceptions=True)

    def _result_of(
        self,
        permit: Permit,
        signal: CallSignal,
        estimated: int,
        used: int | None,
        error: BaseException | None,
        hint: RateLimitHeaders | None,
    ) -> CallResult:
        change = 0.0
        if error is None and used is not None:
            change = used - permit.tokens
            self._estimator.observe_estimate(estimated, used)
        elif isinstance(error, UpstreamRateLimited) or signal is CallSignal.CLIENT_ERROR or _was_never_sent(error):
            change = -permit.tokens  # a reply without vectors is not billed
        cooldown_s = error.retry_after_s if isinstance(error, UpstreamRateLimited) else None
        if cooldown_s is not None:  # jitter, so that not all processes come back in the same moment
            cooldown_s += random.uniform(0, 0.1 + cooldown_s / 10)
        is_charged = permit is not NO_PERMIT_NEEDED
        is_accepted = is_charged and signal in ACCEPTED_SIGNALS and not _was_never_sent(error)
        return CallResult(
            permit.slot,
            signal,
            tokens=change if is_charged else 0.0,
            requests=-1.0 if is_charged and _was_never_sent(error) else 0.0,
            cooldown_s=cooldown_s,
            jitter=random.random(),
            accepted_tokens=permit.tokens + change if is_accepted else None,
            quota_kind=error.quota if isinstance(error, UpstreamRateLimited) else "",
            is_quota_nearly_spent=(
                hint is not None and self.coordinator.has_quota and hint.nearly_spent(QUOTA_NEARLY_SPENT)
            ),
        )

    async def _settle(self, result: CallResult) -> None:
        await self.coordinator.settle(result)
        self._slot_freed.set()
        self._limit_gauge.set(self.coordinator.concurrency_limit)
        self._read_shares()

    def _signal_of(self, error: BaseException | None, seconds: float, tenant: str) -> CallSignal:
        now = time.monotonic()
        if error is None:
            return CallSignal.SLOW if self._congestion.is_slow(tenant, seconds, now) else CallSignal.SUCCESS
        if isinstance(error, UpstreamRateLimited):
            return CallSignal.RATE_LIMITED
        if isinstance(error, UpstreamTimeout | UpstreamOverloaded) or (
            isinstance(error, UpstreamUnavailable) and error.status is None
        ):
            return CallSignal.OVERLOADED if self._congestion.is_shared(tenant, now) else CallSignal.NONE
        has_answered = isinstance(error, UpstreamError) and error.status is not None
        return CallSignal.CLIENT_ERROR if has_answered else CallSignal.NONE

    def _apply_quotas(self) -> None:
        """Use the lower of the configured quotas and those that the provider's headers state."""
        stated = self._rate_limits.limits if self._rate_limits else (None, None)
        requests = quota.min_limit(self._account.requests_per_minute, stated[0])
        tokens = quota.min_limit(self._account.tokens_per_minute, stated[1])
        self.coordinator.set_limits(quota.token_bucket(tokens), quota.request_bucket(requests))
        self._quotas = (tokens, requests)
        self._size_calls()
        if self.coordinator.is_needed:
            self._semaphore.redirect_waiters()

    def _read_shares(self) -> None:
        """Apply what 429s have taught this process or another since the last call of this method."""
        shares, known = self.coordinator.shares, self._shares
        if shares == known or (max(shares) < 1.0 and _distance(shares, known) < SHARE_STEP):
            return
        self._shares = shares
        self._size_calls()
        for share, gauge in zip(shares, self._share_gauges, strict=True):
            gauge.set(share)
        tokens, requests = self._effective_quotas()
        extra = {
            "provider": self._account.name,
            "model": self._model,
            "tokens_per_minute": tokens,
            "requests_per_minute": requests,
        }
        if any(new < old - SHARE_STEP for new, old in zip(shares, self._logged_shares, strict=True)):
            self._logged_shares = shares
            log.warning("a provider refuses calls below its stated quota: all calls keep to less for now", extra=extra)
        elif min(shares) >= 1.0:
            self._logged_shares = shares
            log.info("the whole stated quota of a provider is used again", extra=extra)

    def _effective_quotas(self) -> tuple[int | None, int | None]:
        """Tokens and requests a minute: the stated quotas times their learned shares."""
        tokens, requests = (
            limit and max(1, int(limit * share)) for limit, share in zip(self._quotas, self._shares, strict=True)
        )
        return tokens, requests

    def _size_calls(self) -> None:
        """Keep bulk calls small against the quota, also where it was learned from headers or 429s."""
        is_learned = self._rate_limits is not None or min(self._shares) < 1.0
        self.max_learned_call_tokens = quota.max_call_tokens(*self._effective_quotas()) if is_learned else None


def _distance(shares: tuple[float, float], others: tuple[float, float]) -> float:
    return max(abs(shares[0] - others[0]), abs(shares[1] - others[1]))


def has_long_retry_after(error: BaseException | None) -> bool:
    """True for a 429 with a Retry-After of many seconds: a control call must confirm it for other callers."""
    wait_s = error.retry_after_s if isinstance(error, UpstreamRateLimited) and error.sent else None
    return wait_s is not None and wait_s > LONG_RETRY_AFTER_S


def _was_never_sent(error: BaseException | None) -> bool:
    """True for a call that surely cost nothing: our own side stopped it, or it found no connection."""
    return not error.sent if isinstance(error, UpstreamError) else isinstance(error, EmbedmillError)
