"""Callers before one book on a simulated clock, and a provider behind it that counts a strict sliding minute."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import Protocol

from engine.limiter import quota
from engine.limiter.bucket import AcquireRequest, BucketState, CallResult, CallSignal, Verdict
from providers.fake.rate_limit import Refusal

LIMIT = 1_000_000
START = 1000.0


def bucket_state(tokens: int | None = LIMIT, requests: int | None = 600, *, max_concurrency: int = 64) -> BucketState:
    return BucketState(
        max_concurrency, 90.0, quota.token_bucket(tokens), quota.request_bucket(requests), updated_at=START
    )


def acquire_request(
    slot: str = "a", *, tokens: float = 1.0, interactive: bool = True, max_wait_s: float = 60.0
) -> AcquireRequest:
    return AcquireRequest(slot, interactive, tokens, max_wait_s)


class Window(Protocol):
    def take(self, tokens: int, now: float) -> Refusal | None: ...


@dataclass
class Simulation:
    """Callers before one book, and the provider behind it. Time is simulated; calls take `latency_s`."""

    bucket: BucketState
    window: Window
    seed: int
    latency_s: float = 0.3
    late_s: float = 0.15  # the provider sees a call up to so much after its start
    overstated: float = 1.1  # estimates by truths, the learned ratio's error
    refused: int = 0
    used: int = 0
    calls: int = 0  # answered
    waited: list[float] = field(default_factory=list)  # of interactive calls
    waits: list[tuple[float, float]] = field(default_factory=list)  # the same, with when each began
    interactive_tokens: int = 500
    max_wait_s: float = 60.0  # a longer wait is turned away at once
    refused_at_once: int = 0
    names_quota: bool = False
    tells_wait: bool = False  # a refusal says when there is room again; else it says 1 s

    def run(
        self,
        seconds: float,
        sizes: list[int],
        *,
        callers: int = 8,
        interactive_every_s: float = 0.0,
        began: float = START,
    ) -> None:
        """Bulk callers who each send their next call at once, and an interactive call every so often."""
        rng = random.Random(self.seed)
        events: list[tuple[float, int, str, int, float]] = []
        number = 0

        def later(at: float, kind: str, size: int, since: float) -> None:
            nonlocal number
            number += 1
            heapq.heappush(events, (at, number, kind, size, since))

        for caller in range(callers):
            later(began + caller / 1000, "bulk", rng.choice(sizes), began)
        if interactive_every_s:
            later(began, "interactive", self.interactive_tokens, began)
        while events and events[0][0] < began + seconds:
            now, _, kind, size, since = heapq.heappop(events)
            if kind.startswith("arrive"):
                self._arrive(kind, size, now)
                continue
            interactive = kind == "interactive"
            slot = f"{number}"
            answer = self.bucket.acquire(
                acquire_request(slot, tokens=size * self.overstated, interactive=interactive), now
            )
            if answer.verdict is not Verdict.ALLOW:
                if interactive and now + answer.wait_s > since + self.max_wait_s:
                    self.refused_at_once += 1
                    at = since + interactive_every_s
                    later(at, kind, size, at)
                    continue
                later(now + answer.wait_s + rng.uniform(0.002, 0.01), kind, size, since)
                continue
            start = now + answer.wait_s
            self.bucket.slots.pop(slot, None)  # places are another test's
            later(start + rng.uniform(0, self.late_s), f"arrive-{slot}", size, since)
            if interactive:
                self.waited.append(start - since)
                self.waits.append((since, start - since))
                later(since + interactive_every_s, "interactive", self.interactive_tokens, since + interactive_every_s)
            else:
                at = start + self.latency_s
                later(at, "bulk", rng.choice(sizes), at)

    def _arrive(self, kind: str, size: int, now: float) -> None:
        slot = kind.removeprefix("arrive-")
        charged = size * self.overstated
        refusal = self.window.take(size, now)
        if refusal is not None:
            self.refused += 1
            cooldown_s = refusal.wait_s if self.tells_wait else 1.0
            end = CallResult(
                slot,
                CallSignal.RATE_LIMITED,
                tokens=-charged,
                cooldown_s=cooldown_s,
                quota_kind=refusal.kind if self.names_quota else "",
            )
        else:
            self.used += size
            self.calls += 1
            end = CallResult(slot, CallSignal.SUCCESS, tokens=size - charged, accepted_tokens=size)
        self.bucket.settle(end, now)
