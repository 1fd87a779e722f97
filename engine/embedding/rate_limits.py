"""After a 429: is it everybody's rate limit, or is it drawn by this call alone?

The first 429 of a call shuts the gate of its route for all, for a moment. One that its caller's options may bring
about, that asks for long, or that meets the same batch or the same tenant again shuts it for nobody: a call of ours
shows whether everybody is meant. Where it is answered, only this caller waits; and of a job's batch that is refused
alone again and again, the inputs are looked for that draw the refusal, so that all others get their vectors.
"""

from __future__ import annotations

import random
import time

from engine.embedding.outage_check import Run, control
from engine.limiter.acquire import ANSWERED_429, refusal_message
from engine.limiter.max_wait import MaxWait
from engine.limiter.route_limiter import has_long_retry_after
from engine.routing.outages import route_key
from models.base import trace_id
from models.embedding import Batch, Route
from models.errors import UpstreamRateLimited

OWN_PAUSE_CAP_S = 60.0
OWN_429 = "it answers 429 (rate limit) to this call, and answers others"
# So often a batch, or calls of its tenant, must have been refused alone before the inputs are looked for that do it.
REFUSED_ALONE = 3


def is_to_be_checked(run: Run, route: Route, refusals: int) -> bool:
    """True where a 429 to the next call shuts no gate before a call of ours was refused too."""
    return refusals > 0 or run.router.own_refusals.is_known((*route_key(route), run.tenant))


async def may_try_again(
    run: Run,
    batch: Batch,
    route: Route,
    error: UpstreamRateLimited,
    max_wait: MaxWait,
    *,
    is_searched: bool = False,
) -> bool:
    """After a 429: wait as long as this caller must wait beyond what the route's gate makes all wait for.

    False: raise the error; it says when to come again, and whether an input is to be looked for (`is_own`).
    `is_searched`: the call is of a search for such inputs.
    """
    if not error.sent or run.stop.reason is not None:
        return False
    if error.starts_cooldown:
        return True
    own = (*route_key(route), run.tenant)
    result = await control(run, route)
    if isinstance(result, UpstreamRateLimited):
        run.router.own_refusals.forget(own)
        return True  # the gate is shut by that call
    count = 1
    if result is None:
        count = run.router.own_refusals.note(own)
        error.is_own = run.lane == "bulk" and (is_searched or count >= REFUSED_ALONE)
    wait_s = min(OWN_PAUSE_CAP_S, 2.0**count)
    if error.retry_after_s is not None:
        wait_s = max(error.retry_after_s, wait_s / 2)
    wait_s += random.uniform(0, 0.1 + wait_s / 10)
    if result is not None:
        error.message = refusal_message(*route_key(route), ANSWERED_429, wait_s)
    else:
        error.message = refusal_message(*route_key(route), OWN_429, wait_s) if run.lane != "bulk" else OWN_429
        error.advice = "The inputs that draw it wait, all others go on; see the provider's limits for single calls"
    # A long wait is not spent in a worker: the shard goes back for so long, and others have the place.
    is_too_long = wait_s > max_wait.cooldown_s or (run.lane == "bulk" and has_long_retry_after(error))
    if error.is_own or time.monotonic() + wait_s >= run.deadline or is_too_long:
        error.retry_after_s = wait_s
        return False
    await _pause(run, wait_s, error if count > 1 else None)
    return run.stop.reason is None


async def _pause(run: Run, wait_s: float, cause: UpstreamRateLimited | None) -> None:
    """Wait; the job says so, and why, once it has happened more than once."""
    slot = trace_id("pause")
    run.waits.waiting(slot, wait_s, cause=cause)
    try:
        await run.stop.sleep(wait_s)
    finally:
        run.waits.end(slot, may_start=run.stop.reason is None)
