"""Evidence: how many failures of one input, sent alone, cannot be an accident. Pure arithmetic.

An input fails alone, others pass on the same route after it, it fails again, and so on. Were its failures accidents,
they would fall on its calls and on those of others alike. Fisher's exact test says how likely it is that of all
failures so many fall on this one input's calls and none of its calls passes:

    (f + 1) (f + 2) … (f + m) / ((s + f + 1) … (s + f + m))

with m failures of the input, and s good calls and f accidents of other calls on the route. It needs no guess of how
often the route fails: on a calm route six failures are enough, where 30 % of calls fail at random, 18.
"""

from __future__ import annotations

# An input of a job fails for good: fewer than one job in a million, of up to a thousand suspects each, may be wrong.
MAX_ACCIDENT_BULK = 1e-9
# An input of a sync request: its caller is told that the provider fails on it, and may try again.
MAX_ACCIDENT_INTERACTIVE = 1e-6


def chance_of_accident(failures: int, successes: float, accidents: float) -> float:
    """How likely `failures` in a row of one input are accidents, beside what others met on the same route."""
    chance = 1.0
    for count in range(1, failures + 1):
        chance *= (accidents + count) / (successes + accidents + count)
    return chance
