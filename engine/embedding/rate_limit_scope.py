"""After a 429: finds out whether the rate limit holds for all callers or is drawn by this call alone.

The first 429 of a call starts a short cooldown of its route for all callers. A 429 that the caller's options may have
caused, one with a long Retry-After, or a repeated one to the same batch or tenant starts no cooldown: a control call
shows whether all calls are limited. If it is answered, only this caller waits. A job's batch that alone is refused
again and again is bisected for the inputs that draw the 429, so that all others get their vectors.

The wait for the cooldown itself is in `engine/limiter/acquire.py`.
"""

from __future__ import annotations

import random
import time

from engine.embedding.diagnosis import Run, control_call
from engine.limiter.acquire import ANSWERED_429, refusal_message
from engine.limiter.max_wait import MaxWait
from engine.limiter.route_limiter import has_long_retry_after
from engine.route_state.state import RouteState
from models.base import random_id
from models.embedding import Route
from models.errors import UpstreamRateLimited

TENANT_WAIT_CAP_S = 60.0
TENANT_429 = "it answers 429 (rate limit) to this call, and answers others"
# After so many 429s to a batch, or to calls of its tenant alone, the batch is bisected.
REFUSALS_TO_BISECT = 3


async def should_retry(
    run: Run, route: Route, state: RouteState, error: UpstreamRateLimited, max_wait: MaxWait, *, is_bisecting: bool
) -> bool:
    """After a 429: wait as long as this caller must wait beyond the route's cooldown. True: call again.

    False: raise the error; it says when to retry, and whether the batch is to be bisected (`is_own`).
    """
    if not error.sent or run.stop.reason is not None:
        return False
    if error.starts_cooldown:
        return True
    result = await control_call(run, route)
    if isinstance(result, UpstreamRateLimited):
        state.tenant_refusals.clear(run.tenant)
        return True  # that control call has started the cooldown
    count = 1
    if result is None:
        count = state.tenant_refusals.record(run.tenant)
        error.is_own = run.lane == "bulk" and (is_bisecting or count >= REFUSALS_TO_BISECT)
    wait_s = min(TENANT_WAIT_CAP_S, 2.0**count)
    if error.retry_after_s is not None:
        wait_s = max(error.retry_after_s, wait_s / 2)
    wait_s += random.uniform(0, 0.1 + wait_s / 10)
    if result is not None:
        error.message = refusal_message(*route.key, ANSWERED_429, wait_s)
    else:
        error.message = refusal_message(*route.key, TENANT_429, wait_s) if run.lane != "bulk" else TENANT_429
        error.advice = "The inputs that draw it wait, all others go on; see the provider's limits for single calls"
    # A worker does not spend a long wait: the shard is released for so long, and its slot is free for others.
    is_too_long = wait_s > max_wait.cooldown_s or (run.lane == "bulk" and has_long_retry_after(error))
    if error.is_own or time.monotonic() + wait_s >= run.deadline or is_too_long:
        error.retry_after_s = wait_s
        return False
    await _wait(run, wait_s, error if count > 1 else None)
    return run.stop.reason is None


async def _wait(run: Run, wait_s: float, cause: UpstreamRateLimited | None) -> None:
    """Wait. With a cause, the job reports it as the reason of its wait."""
    slot = random_id("pause")
    run.waits.waiting(slot, wait_s, cause=cause)
    try:
        await run.stop.sleep(wait_s)
    finally:
        run.waits.end(slot, may_start=run.stop.reason is None)
