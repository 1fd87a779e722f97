"""Learns how large a call one route accepts, from its refusals of larger ones.

Known to this process only, and lost with it: a wrong guess costs a smaller call, or one that is split.
"""

from __future__ import annotations

import time

from models.embedding import Batch, Limits

LIMIT_TTL_S = 600.0
NO_LIMIT = 2**62
UNLIMITED = Limits(NO_LIMIT, NO_LIMIT, NO_LIMIT, NO_LIMIT)


class CallSizeLimits:
    """The most inputs, tokens and bytes of one call that the route takes. `has_any`: False for nearly all routes."""

    __slots__ = ("_limits", "_until", "has_any")

    def __init__(self) -> None:
        self.has_any = False
        self._limits = UNLIMITED
        self._until = 0.0  # on time.monotonic()

    def observe_rejection(self, fitting: Batch, limit: str) -> None:
        """Calls larger than this one in `limit` (inputs, tokens or bytes) were refused: send none for a while."""
        learned = self.current() or UNLIMITED
        self._limits = Limits(
            min(learned.inputs_per_call, len(fitting.inputs)) if limit == "inputs" else learned.inputs_per_call,
            NO_LIMIT,
            min(learned.tokens_per_call, fitting.tokens) if limit == "tokens" else learned.tokens_per_call,
            min(learned.bytes_per_call, fitting.bytes) if limit == "bytes" else learned.bytes_per_call,
        )
        self._until = time.monotonic() + LIMIT_TTL_S
        self.has_any = True

    def current(self) -> Limits | None:
        """The limits learned from recent refusals; None: there were none."""
        if self.has_any and time.monotonic() >= self._until:
            self.has_any = False
        return self._limits if self.has_any else None
