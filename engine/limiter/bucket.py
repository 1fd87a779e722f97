"""The rules of one account and model: who may start when, and what an answer teaches. Pure; the clock is given.

This is the book of a process that has no Redis, or has lost it. `script.py` says the same in Lua, for the book that all
processes share; a test holds the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from engine.limiter.learned_quota import LONGEST_MINUTE_S, WHOLE, Accepted, Learned, after_refusal, shape_of
from engine.limiter.quota import UNLIMITED, BucketParams

BUSY_ASK_S = 0.1  # when to ask again for one of the places under way
PROBE_ASK_S = 0.25  # when to ask again while one call tries whether the provider answers again
CUT = 0.7  # what trouble leaves of the places
AIMD_MIN_INTERVAL_S = 1.0  # the calls that meet the same trouble cut once
DEFAULT_COOLDOWN_S = 1.0  # a 429 that says nothing: 1, 2, 4, … s
AGAIN_GATE_CAP_S = 4.0  # so much of that, from the second in a row on, where less is said
BLIND_GATE_CAP_S = 60.0
BULK_HEADROOM = 8  # one place in so many is left to interactive calls


class Verdict(StrEnum):
    """What the book says to a call that wants to start."""

    GO = "go"  # it may start, `wait_s` from now: its cost is charged
    QUOTA = "quota"  # not now: the quota of this minute is spoken for
    GATE = "gate"  # not now: the provider has said 429, or one call is trying whether it still does
    BUSY = "busy"  # not now: as many calls are under way as may be


class CallSignal(StrEnum):
    """What a call's end says about the provider."""

    WELL = "well"
    ANSWERED = "answered"  # an error, but not of the kind that waiting mends: no lesson, except that no gate is needed
    LIMITED = "limited"  # 429
    SLOW = "slow"  # it went well, but took far longer than it used to
    STRAINED = "strained"  # it timed out or was unavailable
    NOTHING = "nothing"  # never sent, or cancelled


@dataclass(frozen=True, slots=True)
class AcquireRequest:
    """A call that wants to start. With `paid` only the gate and a place are asked for: its cost was charged before."""

    slot: str
    interactive: bool
    tokens: float
    patience_s: float  # a longer wait is not charged, but refused
    paid: bool = False


@dataclass(frozen=True, slots=True)
class AcquireDecision:
    verdict: Verdict
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CallResult:
    """A call that has ended, or was given up: what to put right in the book."""

    slot: str
    lesson: CallSignal
    tokens: float = 0.0  # used less charged: negative is a refund
    requests: float = 0.0  # -1 when the provider never saw it
    gate_s: float | None = None  # of a 429: when it may be asked again; None: it did not say
    jitter: float = 0.0  # 0..1, spreads the moment at which a blind gate opens
    accepted: float | None = None  # tokens of a call that the provider took; None: it refused it, or never saw it
    kind: str = ""  # of a 429: "tokens" or "requests", the quota that is used up; '': it did not say
    brake: bool = False  # the provider says that next to nothing of the quota is left: somebody else uses it too


@dataclass(slots=True)
class BucketState:
    """The state of one account and upstream model."""

    most_under_way: int
    slot_s: float  # a place whose call never ended is free again after this
    tokens: BucketParams = UNLIMITED
    requests: BucketParams = UNLIMITED
    places: float = 0.0  # how many calls may be under way now: grows and shrinks with success and trouble
    token_debt: float = 0.0
    request_debt: float = 0.0
    at: float = 0.0
    gate_until: float = 0.0
    shut: bool = False  # from a 429 until a probe was answered
    probe: str = ""
    probe_until: float = 0.0
    strikes: int = 0
    cut_at: float = -AIMD_MIN_INTERVAL_S
    slots: dict[str, float] = field(default_factory=dict)
    learned: tuple[Learned, Learned] = WHOLE  # shares of the quotas, to which calls keep since 429s have shown them
    accepted: Accepted = field(default_factory=Accepted)

    def __post_init__(self) -> None:
        self.places = self.places or float(self.most_under_way)

    def begin(self, now: float, *, shares: tuple[float, float], gate_until: float) -> None:
        """Take over from the shared book, which is away.

        Others may have started calls up to now: what they can have started at once is taken as started, and the last
        minute as busy.
        """
        tokens_share, requests_share = (Learned(share, now) if share < 1.0 else Learned() for share in shares)
        self.gate_until, self.learned = gate_until, (tokens_share, requests_share)
        tokens, requests = self._drain(now)
        self.token_debt, self.request_debt, self.at = tokens.burst, requests.burst, now
        self.accepted.assume(tokens.rate, requests.rate, now)

    def ask(self, ask: AcquireRequest, now: float) -> AcquireDecision:
        """May this call start? GO charges it."""
        token_shape, request_shape = self._drain(now)
        if now < self.gate_until:
            return AcquireDecision(Verdict.GATE, self.gate_until - now)
        if self.shut and now < self.probe_until:
            return AcquireDecision(Verdict.GATE, min(PROBE_ASK_S, self.probe_until - now))
        wait_s = 0.0
        if not ask.paid:
            refused_s = 0.0
            for shape, debt, cost in (
                (token_shape, self.token_debt, ask.tokens),
                (request_shape, self.request_debt, 1.0),
            ):
                if not shape.rate:
                    continue
                wait_s = max(wait_s, (debt + cost - shape.burst) / shape.rate)
                if not ask.interactive:
                    refused_s = max(refused_s, (debt - shape.bulk) / shape.rate)
            if refused_s > 0 or wait_s > ask.patience_s:
                return AcquireDecision(Verdict.QUOTA, max(wait_s, refused_s))
        if wait_s <= 0:
            for slot in [slot for slot, until in self.slots.items() if until <= now]:
                del self.slots[slot]
            if len(self.slots) >= self.room(interactive=ask.interactive):
                return AcquireDecision(Verdict.BUSY, BUSY_ASK_S)
            self.slots[ask.slot] = now + self.slot_s
            if self.shut:
                self.probe, self.probe_until = ask.slot, now + self.slot_s
        if not ask.paid:
            self.token_debt = _charged(self.token_debt, ask.tokens, wait_s, token_shape)
            self.request_debt = _charged(self.request_debt, 1.0, wait_s, request_shape)
        return AcquireDecision(Verdict.GO, wait_s)

    def end(self, end: CallResult, now: float) -> None:
        """Give the place back, settle the cost, and learn."""
        token_shape, request_shape = self._drain(now)
        in_use = len(self.slots)
        self.slots.pop(end.slot, None)
        self.token_debt = _settled(self.token_debt, end.tokens, token_shape)
        self.request_debt = _settled(self.request_debt, end.requests, request_shape)
        if end.accepted is not None:
            self.accepted.add(end.accepted, 1.0, now)
        if end.brake:
            self.token_debt = max(self.token_debt, token_shape.burst)
            self.request_debt = max(self.request_debt, request_shape.burst)
        probing = self.shut and self.probe == end.slot
        if end.lesson is CallSignal.LIMITED:
            self._close(end, now, probing=probing)
        elif probing and end.lesson in (CallSignal.WELL, CallSignal.SLOW, CallSignal.ANSWERED):
            self.shut, self.strikes, self.probe = False, 0, ""
        elif probing:
            self.probe_until = 0.0  # it tells nothing: the next may try
        if end.lesson is CallSignal.WELL:
            if in_use * 2 >= self.places:  # a limit that nobody comes near is not known to be too low
                self.places = min(float(self.most_under_way), self.places + 1 / self.places)
        elif (
            end.lesson in (CallSignal.LIMITED, CallSignal.SLOW, CallSignal.STRAINED)
            and now - self.cut_at >= AIMD_MIN_INTERVAL_S
        ):
            self.places, self.cut_at = max(1.0, self.places * CUT), now

    def shares(self, now: float) -> tuple[float, float]:
        """Of the quotas of tokens and requests: what calls keep to."""
        return self.learned[0].now(now), self.learned[1].now(now)

    def room(self, *, interactive: bool) -> int:
        """How many calls may be under way for one more of this lane to start beside them; at least 1."""
        places = int(self.places)
        return max(1, places if interactive else places - places // BULK_HEADROOM)

    def _close(self, end: CallResult, now: float, *, probing: bool) -> None:
        if probing or not self.shut:  # others had started before the gate was closed: they tell nothing new
            self.strikes += 1
        if not self.shut and (end.gate_s is None or end.gate_s <= LONGEST_MINUTE_S):  # nor does a probe, of the rate
            self._lower(end.kind, now)
        blind_s = min(BLIND_GATE_CAP_S, DEFAULT_COOLDOWN_S * 2.0 ** (self.strikes - 1)) * (1 + end.jitter)
        # It was waited for as long as was told, and refused all the same: that word alone is not enough any more.
        again_s = min(blind_s, AGAIN_GATE_CAP_S) if self.strikes > 1 else 0.0
        gate_s = blind_s if end.gate_s is None else max(end.gate_s, again_s)
        self.gate_until = max(self.gate_until, now + gate_s)
        self.shut, self.probe, self.probe_until = True, "", 0.0

    def _lower(self, kind: str, now: float) -> None:
        """A new 429: what was accepted in the last minute is what the provider allows."""
        tokens, requests = self.accepted.of_last_minute(now)
        used = (
            tokens / self.tokens.per_minute if self.tokens.rate else None,
            requests / self.requests.per_minute if self.requests.rate else None,
        )
        self.learned = after_refusal(self.learned, used, kind, now)

    def _drain(self, now: float) -> tuple[BucketParams, BucketParams]:
        """Bring the debts up to now; the buckets of tokens and of requests as they are now."""
        passed_s = max(0.0, now - self.at)
        self.at = max(self.at, now)
        shares = self.shares(now)
        tokens, requests = shape_of(self.tokens, shares[0], 0.0), shape_of(self.requests, shares[1], 1.0)
        if self.token_debt > 0:
            self.token_debt = max(0.0, self.token_debt - tokens.rate * passed_s)
        if self.request_debt > 0:
            self.request_debt = max(0.0, self.request_debt - requests.rate * passed_s)
        return tokens, requests


def _charged(debt: float, cost: float, wait_s: float, shape: BucketParams) -> float:
    """The debt with a call that starts in `wait_s`: what drains before its start must not make room for it twice.

    What a call costs beyond the burst is paid before its start, by the wait, and once more after it: the minute that
    ends with it and the minute that begins with it are full of it both.
    """
    if not shape.rate:
        return debt
    beyond = max(0.0, cost - shape.burst)
    return max(debt, shape.rate * wait_s - beyond) + cost + beyond


def _settled(debt: float, change: float, shape: BucketParams) -> float:
    if change >= 0:
        return debt + change
    return max(debt + change, min(debt, -shape.credit))
