"""What this process has seen of one route: how often it answered well, and how many of its failures passed."""

from __future__ import annotations

from engine.routing.evidence import chance_of_accident

# What is remembered fades by this share with every answer: about the last 500 count.
MEMORY = 0.998
# Until it is known better: one call in ten fails for no reason.
FIRST_FAULTS, FIRST_TRIES = 2.0, 20.0
# Refusals repeat: one that fails alone is believed, unless so many of late were accidents.
RARE_REFUSALS = 0.01


class RouteHealth:
    """Counts answers, never time: what matters is whether a route answered *after* something else had failed."""

    __slots__ = ("_faults", "_refusals", "_successes", "answers", "late_answers")

    def __init__(self) -> None:
        self.answers = 0
        self.late_answers = 0  # to calls that had waited for seconds: it still works on what it was sent before
        # Good answers, and failures that passed by themselves: faults and refusals.
        self._successes = self._faults = self._refusals = 0.0

    def answered(self, faults: int) -> None:
        """A call was answered well, after so many faults of the same call."""
        self.answers += 1
        self._successes = self._successes * MEMORY + 1
        self._refusals *= MEMORY
        self._faults = self._faults * MEMORY + faults

    def passed(self, failures: int, *, refusals: bool = False) -> None:
        """So many failures were nobody's doing: what had met them was answered well later."""
        if refusals:
            self._refusals += failures
        else:
            self._faults += failures

    def by_chance(self, faults: int) -> float:
        """How likely the same call fails so often on this route without being the reason itself."""
        tries = FIRST_TRIES + self._successes + self._faults
        return float(((FIRST_FAULTS + self._faults) / tries) ** faults)

    def is_enough(self, failures: int, *, refusals: bool, max_accident: float) -> bool:
        """True when so many failures of one input, each followed by a success of others, are no accident."""
        if refusals and self._refusals < RARE_REFUSALS:
            return failures > 0
        accidents = self._refusals if refusals else self._faults
        return chance_of_accident(failures, self._successes, accidents) <= max_accident
