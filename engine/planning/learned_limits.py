"""What a route's own answers teach about size: how many tokens its texts are, and how much it takes in one call.

Known to this process only, and forgotten with it: a wrong guess costs a smaller call, or one that is halved.
"""

from __future__ import annotations

import time

from engine.planning.tokens import DEFAULT_TOKENS_PER_BYTE
from models.embedding import Batch, Limits

# What is remembered fades by this share with every call: about the last 50 count.
MEMORY = 0.98
MARGIN = 1.1
# Fewer calls than this prove nothing.
EVIDENCE_CALLS = 8
# No tokenizer makes more of a byte than one token, nor usually a token of more than eight bytes.
MOST_PER_BYTE = 1.0
LEAST_PER_BYTE = 1 / 8
LESSON_S = 600.0
ANY = 2**62
UNLIMITED = Limits(ANY, ANY, ANY, ANY)


class LearnedLimits:
    __slots__ = ("_bytes", "_calls", "_lesson", "_lesson_until", "_tokens", "_wrong", "per_byte")

    def __init__(self) -> None:
        # Tokens a byte of text, on the safe side.
        self.per_byte = DEFAULT_TOKENS_PER_BYTE
        self._bytes = self._tokens = self._wrong = 0.0
        self._calls = 0
        self._lesson = UNLIMITED
        self._lesson_until = 0.0

    def learn(self, text_bytes: int, tokens: int) -> None:
        """A call with so many bytes of text was counted as so many tokens."""
        self._calls += 1
        expected = text_bytes * self._tokens / self._bytes if self._bytes else float(tokens)
        self._wrong = self._wrong * MEMORY + abs(tokens - expected)
        self._tokens = self._tokens * MEMORY + tokens
        self._bytes = self._bytes * MEMORY + text_bytes
        # As much above the mean as calls were off it lately, and a margin on top.
        learned = (self._tokens + 2 * self._wrong) / self._bytes * MARGIN
        learned = min(max(learned, LEAST_PER_BYTE), MOST_PER_BYTE)
        self.per_byte = learned if self._calls >= EVIDENCE_CALLS else max(learned, DEFAULT_TOKENS_PER_BYTE)

    @property
    def learned_per_byte(self) -> float | None:
        """The mean, not on the safe side; None before there is evidence."""
        return self._tokens / self._bytes if self._calls >= EVIDENCE_CALLS and self._bytes else None

    def too_large(self, fitting: Batch, limit: str) -> None:
        """Calls larger than this one in inputs, tokens or bytes were refused: send none for a while."""
        known = self.lesson() or UNLIMITED
        self._lesson = Limits(
            min(known.inputs_per_call, len(fitting.inputs)) if limit == "inputs" else known.inputs_per_call,
            ANY,
            min(known.tokens_per_call, fitting.tokens) if limit == "tokens" else known.tokens_per_call,
            min(known.bytes_per_call, fitting.bytes) if limit == "bytes" else known.bytes_per_call,
        )
        self._lesson_until = time.monotonic() + LESSON_S

    def lesson(self) -> Limits | None:
        """The limits that refusals taught; None: none of late."""
        if self._lesson_until and time.monotonic() < self._lesson_until:
            return self._lesson
        self._lesson_until = 0.0
        return None
