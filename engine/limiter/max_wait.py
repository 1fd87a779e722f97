"""How long a call may wait for its start, beside its deadline: those that a caller waits for have little time."""

from __future__ import annotations

import math
from dataclasses import dataclass

BUSY = "too many calls to this provider are under way: try again in a moment, or send a job"


@dataclass(frozen=True, slots=True)
class Patience:
    """Longer waits are not begun: the call is turned away at once, with the wait."""

    gate_s: float = math.inf  # for a provider that has said 429
    quota_s: float = math.inf  # for the quota, or in line behind others
    beyond_places: bool = False  # where there is no quota, it starts though all places are taken


UNBOUNDED = Patience()
"""The deadline alone bounds the wait."""

BEYOND_PLACES = Patience(beyond_places=True)
"""Of a call of ours that asks why those hang that hold the places."""

FAILOVER_S = 1.0
WITH_ALTERNATIVE = Patience(FAILOVER_S, FAILOVER_S)
"""Of an interactive call that another route may serve."""
