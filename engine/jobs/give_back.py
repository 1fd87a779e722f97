"""Giving back: what a run leaves undone is released, let go or failed, by what stopped it and how often that was."""

from __future__ import annotations

import asyncio
import logging
import random

from engine import canary
from engine.jobs import claim as claims
from engine.jobs.budget import BudgetSpent, wait_or_pause
from engine.jobs.claim import Claim
from engine.jobs.ending import let_go
from engine.jobs.give_way import GaveWay
from engine.jobs.keeper import Keeper
from engine.jobs.lease import ToldToStop, clock
from engine.jobs.record import fail_rest
from engine.jobs.work import FirstsOutstanding
from engine.runtime import Runtime
from models.errors import (
    DeadlineExceeded,
    EmbedmillError,
    RequestError,
    RouteQuarantined,
    StorageUnavailable,
    UnknownAlias,
    UpstreamError,
    UpstreamRateLimited,
)

log = logging.getLogger("embedmill.jobs")

BACKOFF_CAP_S = 60.0
PAUSE_S = 1.0


async def give_back(runtime: Runtime, held: Claim, keeper: Keeper, error: EmbedmillError | None) -> None:
    """Give a shard back that is not done. A database that is away is asked again for the length of a lease."""
    until = clock() + runtime.settings.lease_s
    while True:
        try:
            await _give_back(runtime, held, keeper, error)
            return
        except StorageUnavailable:
            if clock() > until:
                log.warning("a shard is left to its lease", extra={"job_id": held.job_id, "shard_id": held.shard_id})
                return
        await asyncio.sleep(PAUSE_S)


async def _give_back(runtime: Runtime, held: Claim, keeper: Keeper, error: EmbedmillError | None) -> None:
    if not keeper.go_on:
        await let_go(runtime, held)
    elif isinstance(error, ToldToStop):
        waiting_on = "fairness" if isinstance(error, GaveWay) else "quota" if held.waits.in_vain else None
        await claims.release(runtime, held, delay_s=0.0, spent=False, reason=error.message, waiting_on=waiting_on)
    elif isinstance(error, BudgetSpent):
        await wait_or_pause(runtime, held, error.needed_usd)
    elif isinstance(error, FirstsOutstanding):
        delay_s = random.uniform(0.5, 1.0)
        await claims.release(runtime, held, delay_s=delay_s, spent=False, reason=error.message, waiting_on=None)
    elif isinstance(error, UpstreamRateLimited) or (isinstance(error, DeadlineExceeded) and held.waits.in_vain):
        # The provider was not asked, or said to come later: that it failed is not known.
        delay_s = error.retry_after_s or random.uniform(1.0, 3.0)
        await claims.release(runtime, held, delay_s=delay_s, spent=False, reason=error.message, waiting_on="quota")
    elif isinstance(error, RouteQuarantined):
        await canary.warn(runtime.database, runtime.alias(held.alias), runtime.router.quarantined, held.job_id)
        delay_s = error.retry_after_s or BACKOFF_CAP_S
        await claims.release(runtime, held, delay_s=delay_s, spent=False, reason=error.message, waiting_on="provider")
    elif isinstance(error, RequestError) and not isinstance(error, UnknownAlias):
        await fail_rest(runtime, held, error)  # asking again would be answered alike
    elif error is not None and held.attempt >= runtime.settings.shard_attempts:
        log.warning(
            "a shard's attempts are spent",
            extra={"job_id": held.job_id, "shard_id": held.shard_id, "code": error.code},
        )
        await fail_rest(runtime, held, error)
    else:
        provider_down = isinstance(error, UpstreamError | UnknownAlias) or (error is not None and error.retryable)
        delay_s = random.uniform(0.5, 1.0) * min(BACKOFF_CAP_S, 2.0**held.attempt)
        await claims.release(
            runtime,
            held,
            delay_s=max(delay_s, error.retry_after_s or 0.0) if error else delay_s,
            spent=True,
            reason=error.message if error else "results could not be kept",
            waiting_on="provider" if provider_down else None,
        )
