"""What this process has seen of one route: how often it answered well, and how many of its faults passed."""

from __future__ import annotations

# What is remembered fades by this share with every answer: about the last 50 count.
MEMORY = 0.98


class RouteHealth:
    """Counts answers, never time: what matters is whether a route answered *after* something else had failed."""

    __slots__ = ("_faults", "_tries", "answers")

    def __init__(self) -> None:
        self.answers = 0
        # Until it is known better: one call in ten fails for no reason.
        self._faults, self._tries = 2.0, 20.0

    def answered(self, faults: int) -> None:
        """A call was answered well, after so many faults of the same call."""
        self.answers += 1
        self.passed(faults)

    def passed(self, faults: int) -> None:
        """So many faults were nobody's doing: what had met them was answered well later."""
        self._faults = self._faults * MEMORY + faults
        self._tries = self._tries * MEMORY + faults + 1

    def by_chance(self, faults: int) -> float:
        """How likely the same call fails so often on this route without being the reason itself."""
        return float((self._faults / self._tries) ** faults)
