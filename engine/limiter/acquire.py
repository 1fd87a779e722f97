"""One paced call on its way to its start: it asks at the desk, waits, or is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from dataclasses import dataclass, field

from engine.cancellation import CancellationToken
from engine.limiter.bucket import AcquireDecision, AcquireRequest, CallResult, CallSignal, Verdict
from engine.limiter.call_waits import CONCURRENCY, QUOTA, CallWaits
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.fair_queue import FairLock
from engine.limiter.max_wait import BUSY, UNBOUNDED, Patience
from models.errors import DeadlineExceeded, UpstreamRateLimited

ANSWERED_429 = "it has answered 429 (rate limit)"
SLICE_S = 0.5  # nobody sleeps longer without looking how long is left
LEAST_PAUSE_S = 0.002


@dataclass(slots=True)
class AcquireQueue:
    """Those of one lane who want to start. One asks at a time, so that a crowd does not ask for everyone's sake."""

    account: str
    model: str
    desk: BucketCoordinator
    interactive: bool
    place_free: asyncio.Event
    turn: FairLock


@dataclass(slots=True)
class PacedAcquire:
    lane: AcquireQueue
    slot: str
    tokens: float
    deadline: float  # for the start, on time.monotonic()
    stop: CancellationToken
    waits: CallWaits | None
    patience: Patience = UNBOUNDED
    began: float = field(default_factory=time.monotonic)
    tenant: str = ""

    async def take(self) -> None:
        """Return when the call may start, with its place taken and its cost charged; raise when it may not."""
        lane = self.lane
        if (gate_s := lane.desk.gate_s()) > 0:
            self._check(gate_s, self.patience.gate_s, at_gate=True)
        else:
            self._check(0.0, self.patience.quota_s)
        if self.waits is not None:
            self.waits.begun(self.slot)
        try:
            until = min(self.deadline, self.began + self.patience.quota_s)
            async with self.stop.within(until - time.monotonic()):
                await lane.turn.acquire(self.tenant)
        except TimeoutError:
            self.stop.check()
            gate_s = lane.desk.gate_s()
            raise self._turned_away(max(1.0, gate_s), at_gate=gate_s > 0) from None
        try:
            answer = await self._charged()
        finally:
            lane.turn.release()
        if answer.wait_s > 0:
            await self._start_later(answer.wait_s)

    async def _charged(self) -> AcquireDecision:
        """Ask until the call is charged. Its start may lie ahead still."""
        while True:
            gate_s = self.lane.desk.gate_s()
            if gate_s > 0:  # known here: nobody needs to be asked
                await self._pause(AcquireDecision(Verdict.GATE, gate_s))
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
                await self._pause(AcquireDecision(Verdict.QUOTA, left_s))
            while True:
                answer = await self.lane.desk.ask(self._ask(paid=True))
                if answer.verdict is Verdict.GO:
                    return
                await self._pause(answer)
        except BaseException:
            with contextlib.suppress(asyncio.CancelledError):
                await self.lane.desk.end(CallResult(self.slot, CallSignal.NOTHING, tokens=-self.tokens, requests=-1.0))
            raise

    async def _pause(self, answer: AcquireDecision) -> None:
        if answer.verdict is Verdict.BUSY:
            self._check(0.0)
        elif answer.verdict is Verdict.GATE:
            self._check(answer.wait_s, self.patience.gate_s, at_gate=True)
        else:
            self._check(answer.wait_s, self.patience.quota_s)
        if self.waits is not None:
            is_busy = answer.verdict is Verdict.BUSY
            self.waits.waiting(self.slot, answer.wait_s, reason=CONCURRENCY if is_busy else QUOTA)
        if answer.verdict is Verdict.BUSY:
            free = self.lane.place_free
            free.clear()
            with contextlib.suppress(TimeoutError):
                async with self.stop.within(answer.wait_s):
                    await free.wait()
            return
        # A little late, and not all processes in the same moment: the book leaves room for it.
        await self.stop.sleep(min(SLICE_S, answer.wait_s + random.uniform(LEAST_PAUSE_S, 0.01)))

    def _check(self, wait_s: float, patience_s: float = math.inf, *, at_gate: bool = False) -> None:
        self.stop.check()
        now = time.monotonic()
        if wait_s <= 0 and self.deadline <= now:
            raise DeadlineExceeded(BUSY)
        if wait_s > min(self.deadline, self.began + patience_s) - now:
            raise self._turned_away(wait_s, at_gate=at_gate)

    def _ask(self, *, paid: bool) -> AcquireRequest:
        patience_s = min(self.deadline, self.began + self.patience.quota_s) - time.monotonic()
        return AcquireRequest(self.slot, self.lane.interactive, self.tokens, max(0.0, patience_s), paid)

    def _turned_away(self, wait_s: float, *, at_gate: bool) -> UpstreamRateLimited:
        reason = ANSWERED_429 if at_gate else "the quota of the account is used up for now"
        message = turned_away(self.lane.account, self.lane.model, reason, wait_s)
        return UpstreamRateLimited(message, retry_after_s=wait_s, sent=False)


def turned_away(account: str, model: str, reason: str, wait_s: float) -> str:
    """What the caller reads whose call may not start yet."""
    return f"Provider account {account}, model {model}: {reason}; a call may start in {math.ceil(wait_s)} s"
