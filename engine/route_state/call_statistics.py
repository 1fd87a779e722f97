"""Statistics of one route in this process: how often it succeeded, and how many of its failures were flakes. Pure.

They decide whether an input is at fault that fails while others pass on the same route (Fisher's exact test).
"""

from __future__ import annotations

# With each success, the counts are multiplied by this: about the last 500 calls matter.
DECAY = 0.998
# Prior belief: one call in ten fails for no reason.
PRIOR_FAULTS, PRIOR_CALLS = 2.0, 20.0
# Refusals repeat: an input that is refused alone is believed to be the cause, unless so many were flakes of late.
RARE_REFUSALS = 0.01
# Longest odds at which failures of one input may still be a coincidence. In a job the input fails for good: fewer than
# one job in a million, of up to a thousand suspects each, may be wrong.
MAX_COINCIDENCE_BULK = 1e-9
# The caller of a sync request reads that the provider fails on the input, and may try again.
MAX_COINCIDENCE_INTERACTIVE = 1e-6


def coincidence_probability(failures: int, successes: float, flakes: float) -> float:
    """The probability that so many failures in a row of one input, sent alone, are a coincidence.

    The input fails alone, others pass on the same route, it fails again, and so on. If its failures were flakes, they
    would fall on its calls and on those of others alike. Fisher's exact test gives the probability that, of all
    failures, so many fall on this one input's calls and none of its calls passes:

        (f + 1) (f + 2) … (f + m) / ((s + f + 1) … (s + f + m))

    with m failures of the input, and s successes and f flakes of other calls on the route. No assumption about how
    often the route fails is needed: on a calm route six failures are enough; where 30 % of calls fail at random, 18.
    """
    probability = 1.0
    for count in range(1, failures + 1):
        probability *= (flakes + count) / (successes + flakes + count)
    return probability


class CallStatistics:
    """Counts calls, not time: what matters is whether a route succeeded *after* something else had failed."""

    __slots__ = ("_faults", "_refusals", "_successes", "late_successes", "successes")

    def __init__(self) -> None:
        self.successes = 0
        self.late_successes = 0  # of calls that took seconds: the route still works on what it was sent before
        # Decayed counts: successes, and failures that were flakes, by kind.
        self._successes = self._faults = self._refusals = 0.0

    def record_success(self, faults: int) -> None:
        """A call succeeded, after so many faults of the same call."""
        self.successes += 1
        self._successes = self._successes * DECAY + 1
        self._refusals *= DECAY
        self._faults = self._faults * DECAY + faults

    def record_flakes(self, failures: int, *, refusals: bool = False) -> None:
        """So many failures had no cause in what was sent: the same inputs succeeded later."""
        if refusals:
            self._refusals += failures
        else:
            self._faults += failures

    def flake_probability(self, faults: int) -> float:
        """The probability that one call fails so often on this route without being the cause."""
        calls = PRIOR_CALLS + self._successes + self._faults
        return float(((PRIOR_FAULTS + self._faults) / calls) ** faults)

    def is_conclusive(self, failures: int, *, refusals: bool, max_coincidence: float) -> bool:
        """True when so many failures of one input, each followed by a success of others, are no coincidence."""
        if refusals and self._refusals < RARE_REFUSALS:
            return failures > 0
        flakes = self._refusals if refusals else self._faults
        return coincidence_probability(failures, self._successes, flakes) <= max_coincidence
