"""Acquires the start of one rate-limited call: charges its cost to the buckets, waits for its start, takes a slot."""

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
from engine.limiter.max_wait import AT_CAPACITY_MESSAGE, UNBOUNDED, MaxWait
from models.errors import DeadlineExceeded, UpstreamRateLimited

ANSWERED_429 = "it has answered 429 (rate limit)"
MAX_SLEEP_S = 0.5  # a waiting call checks its deadline at least this often
MIN_JITTER_S, MAX_JITTER_S = 0.002, 0.01


@dataclass(slots=True)
class AcquireQueue:
    """The calls of one lane that want to start. The lock lets one of them at a time ask the coordinator."""

    account: str
    model: str
    coordinator: BucketCoordinator
    interactive: bool
    slot_freed: asyncio.Event
    lock: FairLock


@dataclass(slots=True)
class PacedAcquire:
    """One call that waits for its start."""

    queue: AcquireQueue
    slot: str
    tokens: float
    deadline: float  # for the start, on time.monotonic()
    stop: CancellationToken
    waits: CallWaits | None
    max_wait: MaxWait = UNBOUNDED
    began: float = field(default_factory=time.monotonic)
    tenant: str = ""

    async def run(self) -> None:
        """Return when the call may start, with its slot taken and its cost charged.

        Raises UpstreamRateLimited when the wait would pass the deadline or `max_wait`, DeadlineExceeded when the
        deadline has passed or `stop` is cancelled.
        """
        queue = self.queue
        if (cooldown_s := queue.coordinator.cooldown_s()) > 0:
            self._check(cooldown_s, self.max_wait.cooldown_s, is_cooldown=True)
        else:
            self._check(0.0, self.max_wait.quota_s)
        if self.waits is not None:
            self.waits.begin(self.slot)
        try:
            until = min(self.deadline, self.began + self.max_wait.quota_s)
            async with self.stop.timeout(until - time.monotonic()):
                await queue.lock.acquire(self.tenant)
        except TimeoutError:
            self.stop.raise_if_cancelled()
            cooldown_s = queue.coordinator.cooldown_s()
            raise self._refusal(max(1.0, cooldown_s), is_cooldown=cooldown_s > 0) from None
        try:
            decision = await self._until_charged()
        finally:
            queue.lock.release()
        if decision.wait_s > 0:
            await self._wait_for_start(decision.wait_s)

    async def _until_charged(self) -> AcquireDecision:
        """Ask until the call's cost is charged. Its start may still lie ahead."""
        while True:
            cooldown_s = self.queue.coordinator.cooldown_s()
            if cooldown_s > 0:  # this process knows of the cooldown: Redis need not be asked
                await self._pause(AcquireDecision(Verdict.COOLING_DOWN, cooldown_s))
                continue
            self.stop.raise_if_cancelled()
            decision = await self.queue.coordinator.acquire(self._request(is_charged=False))
            if decision.verdict is Verdict.ALLOW:
                return decision
            await self._pause(decision)

    async def _wait_for_start(self, wait_s: float) -> None:
        """Sleep until the start of the charged call, then wait for a slot. Refunds the cost when it gives up."""
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._refund)
            loop = asyncio.get_running_loop()
            start_at = loop.time() + wait_s
            while (left_s := start_at - loop.time()) > 0:
                await self._pause(AcquireDecision(Verdict.OVER_QUOTA, left_s))
            while True:
                decision = await self.queue.coordinator.acquire(self._request(is_charged=True))
                if decision.verdict is Verdict.ALLOW:
                    undo.pop_all()
                    return
                await self._pause(decision)

    async def _refund(self) -> None:
        refund = CallResult(self.slot, CallSignal.NONE, tokens=-self.tokens, requests=-1.0)
        with contextlib.suppress(asyncio.CancelledError):
            await self.queue.coordinator.settle(refund)

    async def _pause(self, decision: AcquireDecision) -> None:
        """Wait before the coordinator is asked again. Raises where the wait would be too long."""
        is_at_capacity = decision.verdict is Verdict.AT_CAPACITY
        if is_at_capacity:
            self._check(0.0)
        elif decision.verdict is Verdict.COOLING_DOWN:
            self._check(decision.wait_s, self.max_wait.cooldown_s, is_cooldown=True)
        else:
            self._check(decision.wait_s, self.max_wait.quota_s)
        if self.waits is not None:
            self.waits.waiting(self.slot, decision.wait_s, reason=CONCURRENCY if is_at_capacity else QUOTA)
        if is_at_capacity:
            freed = self.queue.slot_freed
            freed.clear()
            with contextlib.suppress(TimeoutError):
                async with self.stop.timeout(decision.wait_s):
                    await freed.wait()
            return
        # Jitter, so that not all processes ask in the same moment; the bucket's margin covers the delay.
        await self.stop.sleep(min(MAX_SLEEP_S, decision.wait_s + random.uniform(MIN_JITTER_S, MAX_JITTER_S)))

    def _check(self, wait_s: float, limit_s: float = math.inf, *, is_cooldown: bool = False) -> None:
        """Raise when the call was cancelled, or when so long a wait would pass its deadline or `limit_s`."""
        self.stop.raise_if_cancelled()
        now = time.monotonic()
        if wait_s <= 0 and self.deadline <= now:
            raise DeadlineExceeded(AT_CAPACITY_MESSAGE)
        if wait_s > min(self.deadline, self.began + limit_s) - now:
            raise self._refusal(wait_s, is_cooldown=is_cooldown)

    def _request(self, *, is_charged: bool) -> AcquireRequest:
        max_wait_s = min(self.deadline, self.began + self.max_wait.quota_s) - time.monotonic()
        return AcquireRequest(self.slot, self.queue.interactive, self.tokens, max(0.0, max_wait_s), is_charged)

    def _refusal(self, wait_s: float, *, is_cooldown: bool) -> UpstreamRateLimited:
        reason = ANSWERED_429 if is_cooldown else "the quota of the account is used up for now"
        message = refusal_message(self.queue.account, self.queue.model, reason, wait_s)
        return UpstreamRateLimited(message, retry_after_s=wait_s, sent=False)


def refusal_message(account: str, model: str, reason: str, wait_s: float) -> str:
    """The message for a caller whose call may not start yet."""
    return f"Provider account {account}, model {model}: {reason}; a call may start in {math.ceil(wait_s)} s"
