"""Learns the size limits of one route from its replies: tokens per byte of text, and the largest call that it accepts.

Known to this process only, and lost with it: a wrong guess costs a smaller call, or one that is split.
"""

from __future__ import annotations

import time

from engine.planning.token_estimator import DEFAULT_TOKENS_PER_BYTE
from models.embedding import Batch, Limits

# With each call, the sums are multiplied by this: about the last 50 calls matter.
DECAY = 0.98
MARGIN = 1.1
# Fewer calls are no evidence.
EVIDENCE_CALLS = 8
# No tokenizer makes more than one token of a byte, nor usually a token of more than eight bytes.
MAX_TOKENS_PER_BYTE = 1.0
MIN_TOKENS_PER_BYTE = 1 / 8
LIMIT_TTL_S = 600.0
NO_LIMIT = 2**62
UNLIMITED = Limits(NO_LIMIT, NO_LIMIT, NO_LIMIT, NO_LIMIT)


class LearnedLimits:
    """What one route has taught this process. `tokens_per_byte` is an estimate on the safe side."""

    __slots__ = ("_bytes", "_calls", "_error", "_limits", "_limits_until", "_tokens", "tokens_per_byte")

    def __init__(self) -> None:
        self.tokens_per_byte = DEFAULT_TOKENS_PER_BYTE
        self._bytes = self._tokens = self._error = 0.0
        self._calls = 0
        self._limits = UNLIMITED
        self._limits_until = 0.0

    def observe(self, text_bytes: int, tokens: int) -> None:
        """A call with so many bytes of text was counted as so many tokens."""
        self._calls += 1
        expected = text_bytes * self._tokens / self._bytes if self._bytes else float(tokens)
        self._error = self._error * DECAY + abs(tokens - expected)
        self._tokens = self._tokens * DECAY + tokens
        self._bytes = self._bytes * DECAY + text_bytes
        # The mean, plus twice the mean error of late, and a margin on top.
        learned = (self._tokens + 2 * self._error) / self._bytes * MARGIN
        learned = min(max(learned, MIN_TOKENS_PER_BYTE), MAX_TOKENS_PER_BYTE)
        self.tokens_per_byte = learned if self._calls >= EVIDENCE_CALLS else max(learned, DEFAULT_TOKENS_PER_BYTE)

    @property
    def learned_tokens_per_byte(self) -> float | None:
        """The mean, without a margin; None before there is evidence."""
        return self._tokens / self._bytes if self._calls >= EVIDENCE_CALLS and self._bytes else None

    def observe_rejection(self, fitting: Batch, limit: str) -> None:
        """Calls larger than this one in `limit` (inputs, tokens or bytes) were refused: send none for a while."""
        learned = self.current() or UNLIMITED
        self._limits = Limits(
            min(learned.inputs_per_call, len(fitting.inputs)) if limit == "inputs" else learned.inputs_per_call,
            NO_LIMIT,
            min(learned.tokens_per_call, fitting.tokens) if limit == "tokens" else learned.tokens_per_call,
            min(learned.bytes_per_call, fitting.bytes) if limit == "bytes" else learned.bytes_per_call,
        )
        self._limits_until = time.monotonic() + LIMIT_TTL_S

    def current(self) -> Limits | None:
        """The limits learned from recent refusals; None: there were none."""
        if self._limits_until and time.monotonic() < self._limits_until:
            return self._limits
        self._limits_until = 0.0
        return None
