"""Giving back: what a run leaves undone is released, let go or failed, by what stopped it and how often that was."""

from __future__ import annotations

import asyncio
import logging
import random

from engine.jobs.control.end_early import close_shards_of_ended, let_go
from engine.jobs.execution import provider_wait
from engine.jobs.execution.lease_keeper import ShardStopped
from engine.jobs.execution.pending_inputs import FirstOccurrencesPending
from engine.jobs.execution.preemption import ShardPreempted
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.blocked import find_blocker
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.budget import BudgetExhausted, wait_or_pause
from engine.jobs.recording.record import fail_rest
from engine.process.clock import machine_clock as clock
from engine.routing import drift
from engine.runtime import Runtime
from models.errors import (
    DeadlineExceeded,
    EmbeddingsUnsupported,
    EmbedmillError,
    RequestError,
    RouteQuarantined,
    StorageUnavailable,
    UnknownAlias,
    UpstreamRateLimited,
)

log = logging.getLogger("embedmill.jobs")

BACKOFF_CAP_S = 60.0
PAUSE_S = 1.0


async def give_back(runtime: Runtime, held: ClaimedShard, keeper: ResultsWriter, error: EmbedmillError | None) -> None:
    """Give a shard back that is not done. A database that is away is asked again for the length of a lease."""
    until = clock() + runtime.settings.lease_s
    while True:
        try:
            await _give_back(runtime, held, keeper, error)
            # It may have been cancelled, or have expired, while the worker thought that it went on.
            await close_shards_of_ended(runtime, held.job_id)
            return
        except StorageUnavailable:
            if clock() > until:
                log.warning("a shard is left to its lease", extra={"job_id": held.job_id, "shard_id": held.shard_id})
                return
        except Exception:
            # The reason could not be written down, say: the shard goes back all the same, and the attempt is spent.
            log.exception("a shard could not be given back", extra={"job_id": held.job_id, "shard_id": held.shard_id})
            if error is None:
                return
            error = None
        await asyncio.sleep(PAUSE_S)


async def _give_back(runtime: Runtime, held: ClaimedShard, keeper: ResultsWriter, error: EmbedmillError | None) -> None:
    if not keeper.go_on:
        await let_go(runtime, held)
    elif isinstance(error, ShardStopped):
        waiting_on = (
            "fairness" if isinstance(error, ShardPreempted) else "quota" if held.waits.last_was_refused else None
        )
        await claims.release(runtime, held, delay_s=0.0, spent=False, reason=error.message, waiting_on=waiting_on)
    elif isinstance(error, BudgetExhausted):
        await wait_or_pause(runtime, held, error.needed_usd)
    elif isinstance(error, FirstOccurrencesPending):
        blocker = await find_blocker(runtime, held.job_id, error.firsts)
        await claims.release(
            runtime,
            held,
            delay_s=0.0 if blocker else random.uniform(0.5, 1.0),
            spent=False,
            reason=error.message,
            waiting_on=None,
            blocked_by=blocker,
        )
    elif isinstance(error, UpstreamRateLimited) and error.is_own:
        await provider_wait.wait_for_inputs(runtime, held, error)
    elif isinstance(error, UpstreamRateLimited) or (
        isinstance(error, DeadlineExceeded) and held.waits.last_was_refused
    ):
        # The provider was not asked, or said to come later: that it failed is not known.
        delay_s = error.retry_after_s or random.uniform(1.0, 3.0)
        await claims.release(runtime, held, delay_s=delay_s, spent=False, reason=error.message, waiting_on="quota")
    elif isinstance(error, RouteQuarantined):
        await drift.add_job_warning(
            runtime.database, runtime.alias(held.alias), runtime.router.quarantined, held.job_id
        )
        delay_s = error.retry_after_s or BACKOFF_CAP_S
        await provider_wait.release(runtime, held, error, delay_s=delay_s, spent=False)
    elif isinstance(error, RequestError | EmbeddingsUnsupported) and not isinstance(error, UnknownAlias):
        await fail_rest(runtime, held, error)  # asking again would be answered alike
    elif (outage := provider_wait.outage_of(runtime, held, error)) is not None:
        await provider_wait.wait_for_provider(runtime, held, outage)
    elif error is not None and held.attempt >= runtime.settings.shard_attempts:
        log.warning(
            "a shard's attempts are spent",
            extra={"job_id": held.job_id, "shard_id": held.shard_id, "code": error.code},
        )
        await fail_rest(runtime, held, error)
    else:
        delay_s = random.uniform(0.5, 1.0) * min(BACKOFF_CAP_S, 2.0**held.attempt)
        if error is None:
            reason = "results could not be kept"
            await claims.release(runtime, held, delay_s=delay_s, spent=True, reason=reason, waiting_on=None)
        else:
            delay_s = max(delay_s, error.retry_after_s or 0.0)
            await provider_wait.release(runtime, held, error, delay_s=delay_s, spent=True)
