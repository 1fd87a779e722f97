"""State and rules of the rate limit of one account and upstream model. Pure; the caller passes the time.

Two token buckets (tokens, requests), kept as debts that drain; a circuit breaker that a 429 opens; a concurrency limit
(AIMD). This is the state of a process that has no Redis, or has lost it. `lua.py` says the same in Lua, for the state
in Redis that all processes share; a test checks that both decide alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from engine.limiter.learned_quota import (
    MAX_QUOTA_COOLDOWN_S,
    NOTHING_LEARNED,
    AcceptedUsage,
    LearnedShare,
    after_refusal,
    params_for_share,
)
from engine.limiter.quota import UNLIMITED, BucketParams

AT_CAPACITY_RETRY_S = 0.1  # a refused call asks again for a slot after this
HALF_OPEN_RETRY_S = 0.25  # and after this while the half-open circuit waits for its probe
AIMD_DECREASE = 0.7  # the concurrency limit is multiplied by this on trouble
AIMD_MIN_INTERVAL_S = 1.0  # calls that meet the same trouble decrease the limit once
DEFAULT_COOLDOWN_S = 1.0  # after a 429 without Retry-After: 1, 2, 4, … s
DEFAULT_COOLDOWN_CAP_S = 60.0
REPEATED_COOLDOWN_CAP_S = 4.0  # from the second 429 in a row on, a shorter Retry-After is raised as far as this
BULK_HEADROOM = 8  # one slot in so many is reserved for interactive calls


class Verdict(StrEnum):
    """The decision about a call that wants to start."""

    ALLOW = "allow"  # it may start in `wait_s`; its cost is charged
    OVER_QUOTA = "over_quota"  # not now: the quota of this minute is used up
    COOLING_DOWN = "cooling_down"  # not now: the circuit is open after a 429, or half-open with a probe under way
    AT_CAPACITY = "at_capacity"  # not now: the concurrency limit is reached


class CallSignal(StrEnum):
    """What the end of a call says about the provider."""

    SUCCESS = "success"
    CLIENT_ERROR = "client_error"  # an error that says nothing about load, except that the provider answers again
    RATE_LIMITED = "rate_limited"  # 429
    SLOW = "slow"  # success, but far slower than usual
    OVERLOADED = "overloaded"  # a timeout, or the provider was unavailable
    NONE = "none"  # never sent, or cancelled


@dataclass(frozen=True, slots=True)
class AcquireRequest:
    """A call that wants to start. With `is_charged` its cost was charged before: it needs only a slot."""

    slot: str
    interactive: bool
    tokens: float
    max_wait_s: float  # a call that would wait longer is refused, and not charged
    is_charged: bool = False


@dataclass(frozen=True, slots=True)
class AcquireDecision:
    """The answer to an AcquireRequest. `wait_s`: until the start, or until the call may ask again."""

    verdict: Verdict
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CallResult:
    """A call that has ended, or was given up: the corrections of the state that follow from it."""

    slot: str
    signal: CallSignal
    tokens: float = 0.0  # tokens used minus tokens charged; negative: a refund
    requests: float = 0.0  # -1 when the provider never saw the call
    cooldown_s: float | None = None  # Retry-After of a 429; None: the provider did not say
    jitter: float = 0.0  # 0..1, spreads the ends of cooldowns without Retry-After
    accepted_tokens: float | None = None  # of a call that the provider accepted; None: it refused or never saw it
    quota_kind: str = ""  # the quota that a 429 names: "tokens" or "requests"; '': it names none
    is_quota_nearly_spent: bool = False  # by the rate-limit headers: another client shares the quota


@dataclass(slots=True)
class BucketState:
    """Debts, circuit breaker, concurrency limit and slots of one account and upstream model."""

    max_concurrency: int
    slot_ttl_s: float  # a slot whose call never ended is free again after this
    tokens: BucketParams = UNLIMITED
    requests: BucketParams = UNLIMITED
    concurrency_limit: float = 0.0
    token_debt: float = 0.0
    request_debt: float = 0.0
    updated_at: float = 0.0  # the time for which the debts are right
    cooldown_until: float = 0.0
    is_tripped: bool = False  # the circuit is open until `cooldown_until`, then half-open until a probe succeeds
    probe_slot: str = ""
    probe_deadline: float = 0.0
    consecutive_429s: int = 0
    decreased_at: float = -AIMD_MIN_INTERVAL_S
    slots: dict[str, float] = field(default_factory=dict)  # slot: when it counts as lost
    learned: tuple[LearnedShare, LearnedShare] = NOTHING_LEARNED  # of the stated quotas of tokens and requests
    accepted: AcceptedUsage = field(default_factory=AcceptedUsage)

    def __post_init__(self) -> None:
        self.concurrency_limit = self.concurrency_limit or float(self.max_concurrency)

    def begin(self, now: float, *, shares: tuple[float, float], cooldown_until: float) -> None:
        """Take over from the shared state when Redis is down.

        Other processes may have started calls up to now: assumes that the burst is used up and the last minute was
        full.
        """
        tokens_share, requests_share = (LearnedShare(share, now) if share < 1.0 else LearnedShare() for share in shares)
        self.cooldown_until, self.learned = cooldown_until, (tokens_share, requests_share)
        tokens, requests = self._drain(now)
        self.token_debt, self.request_debt, self.updated_at = tokens.burst, requests.burst, now
        self.accepted.assume(tokens.rate, requests.rate, now)

    def acquire(self, request: AcquireRequest, now: float) -> AcquireDecision:
        """Decide whether the call may start. ALLOW charges its cost."""
        token_params, request_params = self._drain(now)
        if now < self.cooldown_until:
            return AcquireDecision(Verdict.COOLING_DOWN, self.cooldown_until - now)
        if self.is_tripped and now < self.probe_deadline:
            return AcquireDecision(Verdict.COOLING_DOWN, min(HALF_OPEN_RETRY_S, self.probe_deadline - now))
        wait_s = 0.0
        if not request.is_charged:
            wait_s, headroom_wait_s = self._waits(request, token_params, request_params)
            if headroom_wait_s > 0 or wait_s > request.max_wait_s:
                return AcquireDecision(Verdict.OVER_QUOTA, max(wait_s, headroom_wait_s))
        if wait_s <= 0:
            for slot in [slot for slot, until in self.slots.items() if until <= now]:
                del self.slots[slot]
            if len(self.slots) >= self.lane_limit(interactive=request.interactive):
                return AcquireDecision(Verdict.AT_CAPACITY, AT_CAPACITY_RETRY_S)
            self.slots[request.slot] = now + self.slot_ttl_s
            if self.is_tripped:
                self.probe_slot, self.probe_deadline = request.slot, now + self.slot_ttl_s
        if not request.is_charged:
            self.token_debt = _charged_debt(self.token_debt, request.tokens, wait_s, token_params)
            self.request_debt = _charged_debt(self.request_debt, 1.0, wait_s, request_params)
        return AcquireDecision(Verdict.ALLOW, wait_s)

    def _waits(
        self, request: AcquireRequest, token_params: BucketParams, request_params: BucketParams
    ) -> tuple[float, float]:
        """Seconds until the call fits the quota, and until the headroom that bulk calls leave is there again."""
        wait_s = headroom_wait_s = 0.0
        for params, debt, cost in (
            (token_params, self.token_debt, request.tokens),
            (request_params, self.request_debt, 1.0),
        ):
            if not params.rate:
                continue
            wait_s = max(wait_s, (debt + cost - params.burst) / params.rate)
            if not request.interactive:
                headroom_wait_s = max(headroom_wait_s, (debt - params.bulk_threshold) / params.rate)
        return wait_s, headroom_wait_s

    def settle(self, result: CallResult, now: float) -> None:
        """Free the call's slot, correct the debts, and adapt circuit breaker, quotas and concurrency limit."""
        token_params, request_params = self._drain(now)
        in_use = len(self.slots)
        self.slots.pop(result.slot, None)
        self.token_debt = _settled_debt(self.token_debt, result.tokens, token_params)
        self.request_debt = _settled_debt(self.request_debt, result.requests, request_params)
        if result.accepted_tokens is not None:
            self.accepted.add(result.accepted_tokens, 1.0, now)
        if result.is_quota_nearly_spent:
            self.token_debt = max(self.token_debt, token_params.burst)
            self.request_debt = max(self.request_debt, request_params.burst)
        is_probe = self.is_tripped and self.probe_slot == result.slot
        if result.signal is CallSignal.RATE_LIMITED:
            self._trip(result, now, is_probe=is_probe)
        elif is_probe and result.signal in (CallSignal.SUCCESS, CallSignal.SLOW, CallSignal.CLIENT_ERROR):
            self.is_tripped, self.consecutive_429s, self.probe_slot = False, 0, ""
        elif is_probe:
            self.probe_deadline = 0.0  # the probe showed nothing: the next call may be the probe
        self._adapt_concurrency(result.signal, in_use, now)

    def shares(self, now: float) -> tuple[float, float]:
        """The shares of the stated quotas of tokens and requests that calls may use."""
        return self.learned[0].now(now), self.learned[1].now(now)

    def lane_limit(self, *, interactive: bool) -> int:
        """The concurrency limit for one more call of this lane; at least 1."""
        limit = int(self.concurrency_limit)
        return max(1, limit if interactive else limit - limit // BULK_HEADROOM)

    def _adapt_concurrency(self, signal: CallSignal, in_use: int, now: float) -> None:
        if signal is CallSignal.SUCCESS:
            if in_use * 2 >= self.concurrency_limit:  # a limit that calls do not come near is not known to be too low
                raised = self.concurrency_limit + 1 / self.concurrency_limit
                self.concurrency_limit = min(float(self.max_concurrency), raised)
        elif (
            signal in (CallSignal.RATE_LIMITED, CallSignal.SLOW, CallSignal.OVERLOADED)
            and now - self.decreased_at >= AIMD_MIN_INTERVAL_S
        ):
            self.concurrency_limit, self.decreased_at = max(1.0, self.concurrency_limit * AIMD_DECREASE), now

    def _trip(self, result: CallResult, now: float, *, is_probe: bool) -> None:
        """Open the circuit after a 429."""
        if is_probe or not self.is_tripped:  # calls that had started before the circuit opened say nothing new
            self.consecutive_429s += 1
        # A probe's 429 says nothing about the quota either.
        if not self.is_tripped and (result.cooldown_s is None or result.cooldown_s <= MAX_QUOTA_COOLDOWN_S):
            self._lower_quota(result.quota_kind, now)
        backoff_s = DEFAULT_COOLDOWN_S * 2.0 ** (self.consecutive_429s - 1)
        backoff_s = min(DEFAULT_COOLDOWN_CAP_S, backoff_s) * (1 + result.jitter)
        # Second 429 in a row: the Retry-After was too short, so wait at least the exponential cooldown, up to a cap.
        floor_s = min(backoff_s, REPEATED_COOLDOWN_CAP_S) if self.consecutive_429s > 1 else 0.0
        cooldown_s = backoff_s if result.cooldown_s is None else max(result.cooldown_s, floor_s)
        self.cooldown_until = max(self.cooldown_until, now + cooldown_s)
        self.is_tripped, self.probe_slot, self.probe_deadline = True, "", 0.0

    def _lower_quota(self, kind: str, now: float) -> None:
        """After a new 429: what the provider accepted in the last minute is its real quota."""
        tokens, requests = self.accepted.of_last_minute(now)
        used = (
            tokens / self.tokens.per_minute if self.tokens.rate else None,
            requests / self.requests.per_minute if self.requests.rate else None,
        )
        self.learned = after_refusal(self.learned, used, kind, now)

    def _drain(self, now: float) -> tuple[BucketParams, BucketParams]:
        """Drain the debts up to now. Returns the parameters of both buckets for the learned shares of now."""
        passed_s = max(0.0, now - self.updated_at)
        self.updated_at = max(self.updated_at, now)
        shares = self.shares(now)
        tokens = params_for_share(self.tokens, shares[0], 0.0)
        requests = params_for_share(self.requests, shares[1], 1.0)
        if self.token_debt > 0:
            self.token_debt = max(0.0, self.token_debt - tokens.rate * passed_s)
        if self.request_debt > 0:
            self.request_debt = max(0.0, self.request_debt - requests.rate * passed_s)
        return tokens, requests


def _charged_debt(debt: float, cost: float, wait_s: float, params: BucketParams) -> float:
    """The debt with a call that starts in `wait_s`: what drains before its start must not admit other calls too.

    The part of a cost above the burst is paid twice: by the wait before the start, and again after it. The minute that
    ends with the call and the minute that begins with it both contain its whole cost.
    """
    if not params.rate:
        return debt
    beyond = max(0.0, cost - params.burst)
    return max(debt, params.rate * wait_s - beyond) + cost + beyond


def _settled_debt(debt: float, change: float, params: BucketParams) -> float:
    """The debt after a correction. A refund leaves at most the bucket's credit."""
    if change >= 0:
        return debt + change
    return max(debt + change, min(debt, -params.max_credit))
