"""The budget of hedged calls of one model: at most one in twenty of its interactive calls, in this process. Pure."""

from __future__ import annotations

CALLS_PER_HEDGE = 20
MAX_SAVED_HEDGES = 10  # a provider that becomes slow after a long good time does not double all its calls


class HedgeBudget:
    """Each call adds a twentieth of a hedge. Belongs to one event loop."""

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        self._credit = 0  # in twentieths

    def add_call(self) -> None:
        """An interactive call begins."""
        self._credit = min(self._credit + 1, MAX_SAVED_HEDGES * CALLS_PER_HEDGE)

    def take(self) -> bool:
        """True when a second route may be called for one more of these calls."""
        if self._credit < CALLS_PER_HEDGE:
            return False
        self._credit -= CALLS_PER_HEDGE
        return True
