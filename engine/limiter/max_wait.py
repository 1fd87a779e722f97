"""How long a call may wait for its start, in addition to its deadline: interactive callers have little time."""

from __future__ import annotations

import math
from dataclasses import dataclass

AT_CAPACITY_MESSAGE = "too many calls to this provider are under way: try again in a moment, or send a job"


@dataclass(frozen=True, slots=True)
class MaxWait:
    """A call that would wait longer is refused at once; the error says how long the wait would be."""

    cooldown_s: float = math.inf  # for the end of a provider's cooldown after a 429
    quota_s: float = math.inf  # for the quota, or in the queue behind other calls
    ignores_concurrency: bool = (
        False  # where there is no quota, the call starts though the concurrency limit is reached
    )


UNBOUNDED = MaxWait()
"""The deadline alone bounds the wait."""

IGNORING_CONCURRENCY = MaxWait(ignores_concurrency=True)
"""For a control call that checks why the calls in all slots hang."""

FAILOVER_WAIT_S = 1.0
WITH_ALTERNATIVE = MaxWait(FAILOVER_WAIT_S, FAILOVER_WAIT_S)
"""For an interactive call that another route may serve."""
