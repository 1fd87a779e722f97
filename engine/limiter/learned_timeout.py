"""Learns when a call counts as hung, from the latency of successful calls of its route. Pure.

A call that hangs occupies a slot, and its inputs wait: the account's own timeout, a minute, is far more than most
providers ever need. A call that is given up may be billed all the same, so the learned timeout is far above the usual
latency, and doubles with every second timeout in a row: a provider that has become slow is still waited for.
"""

from __future__ import annotations

from collections import deque

CALLS_TO_KNOW = 20
CALLS_TO_GUESS = 5  # the first shard of a job makes no more than eight calls, and must not wait a minute for one
GUESS_MULTIPLE = 10.0  # of the slowest of those
GUESS_FLOOR_S = 16.0
CALLS_KEPT = 200
RECOMPUTE_EVERY = 10  # calls
RECOMPUTE_EVERY_WHEN_FULL = 50  # of the calls kept, so few change little
MULTIPLE = 4.0  # of the 99th percentile
FLOOR_S = 8.0
LATE_MULTIPLE = 3.0  # of the 99th percentile
LATE_FLOOR_S = 4.0
# A call with fewer tokens than a fourth says nothing of how long one that timed out would have taken.
COMPARABLE = 4
NO_TIMEOUT_S = 86_400.0


class LearnedTimeout:
    """Seconds, and seconds per token, of the last successful calls of one route."""

    def __init__(self) -> None:
        self.is_known = False  # True once enough calls have succeeded to know what is usual
        self._calls: deque[tuple[float, float]] = deque(maxlen=CALLS_KEPT)
        self._p99_s = self._p99_token_s = 0.0
        self._since_recomputed = 0
        self._timeouts = 0  # since the last success of a comparable call
        self._min_timed_out_tokens = 0

    def record_success(self, seconds: float, tokens: int) -> None:
        """Learn from a successful call of so many tokens."""
        if tokens * COMPARABLE >= self._min_timed_out_tokens:
            self._timeouts = 0
        self._calls.append((seconds, seconds / max(1, tokens)))
        self.is_known = self.is_known or len(self._calls) >= CALLS_TO_KNOW
        self._since_recomputed += 1
        every = RECOMPUTE_EVERY if len(self._calls) < CALLS_KEPT else RECOMPUTE_EVERY_WHEN_FULL
        if len(self._calls) == CALLS_TO_KNOW or self._since_recomputed >= every:
            self._since_recomputed = 0
            rank = (len(self._calls) * 99) // 100
            self._p99_s = sorted(seconds for seconds, _ in self._calls)[rank]
            self._p99_token_s = sorted(per_token for _, per_token in self._calls)[rank]

    def record_timeout(self, tokens: int = 0) -> None:
        """Learn from a call of so many tokens that timed out."""
        self._min_timed_out_tokens = min(tokens, self._min_timed_out_tokens) if self._timeouts else tokens
        self._timeouts += 1

    def timeout_s(self, tokens: int) -> float:
        """Timeout of a call of so many tokens. Larger calls than were seen get time in proportion to their tokens."""
        if len(self._calls) < CALLS_TO_GUESS:
            return NO_TIMEOUT_S
        if self.is_known:
            limit_s = max(FLOOR_S, MULTIPLE * max(self._p99_s, self._p99_token_s * tokens))
        else:
            slowest_s = max(max(seconds, per_token * tokens) for seconds, per_token in self._calls)
            limit_s = max(GUESS_FLOOR_S, GUESS_MULTIPLE * slowest_s)
        return limit_s * self.slack

    @property
    def slack(self) -> float:
        """Factor of the timeout while calls time out and none succeeds."""
        return float(2.0 ** min(self._timeouts // 2, 10))

    def late_s(self, tokens: int) -> float | None:
        """Seconds after which a call of so many tokens is late and should be checked. None: nothing is known yet."""
        if not self.is_known:
            return None
        return max(LATE_FLOOR_S, LATE_MULTIPLE * max(self._p99_s, self._p99_token_s * tokens))
