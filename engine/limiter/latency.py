"""How long a call may take before it counts as hung, learned from the calls that ended well. Pure.

A call that hangs holds a place, and its inputs wait for it: the account's own limit, a minute, is far more than most
providers ever need. A call that is given up may be billed all the same, so the limit keeps far from what is usual, and
doubles with each timeout that no good answer follows: a provider that has become slow is never given up for ever.
"""

from __future__ import annotations

from collections import deque

CALLS_TO_KNOW = 20
CALLS_TO_GUESS = 5  # the first shard of a job makes no more than eight, and must not wait a minute for one of them
GUESS_MULTIPLE = 10.0  # of the slowest of those
GUESS_FLOOR_S = 16.0
CALLS_KEPT = 200
RECKON_EVERY = 10
RECKON_EVERY_WHEN_FULL = 50  # of the calls kept, so few change little
MULTIPLE = 4.0  # of the slowest in a hundred
FLOOR_S = 8.0
LATE_MULTIPLE = 3.0  # of the slowest in a hundred
LATE_FLOOR_S = 4.0
# A call of so much fewer tokens says nothing of how long one that timed out would have taken.
COMPARABLE = 4
FOREVER_S = 86_400.0


class Latency:
    """Seconds, and seconds a token, of the last good calls of one route."""

    __slots__ = ("_calls", "_least_timed_out", "_p99_s", "_p99_token_s", "_since_reckoned", "_timeouts")

    def __init__(self) -> None:
        self._calls: deque[tuple[float, float]] = deque(maxlen=CALLS_KEPT)
        self._p99_s = self._p99_token_s = 0.0
        self._since_reckoned = 0
        self._timeouts = 0  # since the last good answer to a call not much smaller
        self._least_timed_out = 0  # tokens, of those calls

    def succeeded(self, seconds: float, tokens: int) -> None:
        if tokens * COMPARABLE >= self._least_timed_out:
            self._timeouts = 0
        self._calls.append((seconds, seconds / max(1, tokens)))
        self._since_reckoned += 1
        every = RECKON_EVERY if len(self._calls) < CALLS_KEPT else RECKON_EVERY_WHEN_FULL
        if len(self._calls) == CALLS_TO_KNOW or self._since_reckoned >= every:
            self._since_reckoned = 0
            at = (len(self._calls) * 99) // 100
            self._p99_s = sorted(seconds for seconds, _ in self._calls)[at]
            self._p99_token_s = sorted(per_token for _, per_token in self._calls)[at]

    def timed_out(self, tokens: int = 0) -> None:
        self._least_timed_out = min(tokens, self._least_timed_out) if self._timeouts else tokens
        self._timeouts += 1

    @property
    def is_known(self) -> bool:
        return len(self._calls) >= CALLS_TO_KNOW

    def timeout_s(self, tokens: int) -> float:
        """For a call of so many tokens. Larger calls than were seen get as much more as small ones took a token."""
        if len(self._calls) < CALLS_TO_GUESS:
            return FOREVER_S
        if self.is_known:
            limit_s = max(FLOOR_S, MULTIPLE * max(self._p99_s, self._p99_token_s * tokens))
        else:
            slowest_s = max(max(seconds, per_token * tokens) for seconds, per_token in self._calls)
            limit_s = max(GUESS_FLOOR_S, GUESS_MULTIPLE * slowest_s)
        return limit_s * self.slack

    @property
    def slack(self) -> float:
        """By how much more to wait than what is usual, since calls have timed out and none was answered."""
        return float(2.0 ** min(self._timeouts // 2, 10))

    def late_s(self, tokens: int) -> float | None:
        """After so long a call of so many tokens is late: somebody should look. None: it is not known what is usual."""
        if not self.is_known:
            return None
        return max(LATE_FLOOR_S, LATE_MULTIPLE * max(self._p99_s, self._p99_token_s * tokens))
