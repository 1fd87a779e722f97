"""Release of an unfinished shard: queued again, cancelled or failed, by the error that stopped it and its attempts."""

from __future__ import annotations

import asyncio
import logging
import random

from engine.jobs.control.termination import cancel_idle_shards_if_ended, drop_claim
from engine.jobs.execution import outage_waits
from engine.jobs.execution.lease_keeper import ShardStopped
from engine.jobs.execution.open_inputs import FirstOccurrencesPending
from engine.jobs.execution.preemption import ShardPreempted
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.blocked import find_blocker
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.budget import BudgetExhausted, release_or_pause
from engine.jobs.recording.record import fail_remaining
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
RETRY_EVERY_S = 1.0


async def release_unfinished(
    runtime: Runtime, shard: ClaimedShard, writer: ResultsWriter, error: EmbedmillError | None
) -> None:
    """Release a shard with open inputs. An unavailable database is retried for the length of a lease."""
    until = clock() + runtime.settings.lease_s
    while True:
        try:
            await _release_unfinished(runtime, shard, writer, error)
            # The job may have been cancelled or have expired while the shard ran.
            await cancel_idle_shards_if_ended(runtime, shard.job_id)
            return
        except StorageUnavailable:
            if clock() > until:
                log.warning("a shard is left to its lease", extra={"job_id": shard.job_id, "shard_id": shard.shard_id})
                return
        except Exception:
            # For example the reason could not be stored: the shard is released without it, and the attempt counts.
            log.exception("a shard could not be given back", extra={"job_id": shard.job_id, "shard_id": shard.shard_id})
            if error is None:
                return
            error = None
        await asyncio.sleep(RETRY_EVERY_S)


async def _release_unfinished(
    runtime: Runtime, shard: ClaimedShard, writer: ResultsWriter, error: EmbedmillError | None
) -> None:
    if not writer.job_active:
        await drop_claim(runtime, shard)
    elif isinstance(error, ShardStopped):
        waiting_on = (
            "fairness" if isinstance(error, ShardPreempted) else "quota" if shard.waits.last_was_refused else None
        )
        await claims.release(
            runtime, shard, delay_s=0.0, counts_as_attempt=False, reason=error.message, waiting_on=waiting_on
        )
    elif isinstance(error, BudgetExhausted):
        await release_or_pause(runtime, shard, error.needed_usd)
    elif isinstance(error, FirstOccurrencesPending):
        blocker = await find_blocker(runtime, shard.job_id, error.firsts)
        await claims.release(
            runtime,
            shard,
            delay_s=0.0 if blocker else random.uniform(0.5, 1.0),
            counts_as_attempt=False,
            reason=error.message,
            waiting_on=None,
            blocked_by=blocker,
        )
    elif isinstance(error, UpstreamRateLimited) and error.is_own:
        await outage_waits.wait_for_inputs(runtime, shard, error)
    elif isinstance(error, UpstreamRateLimited) or (
        isinstance(error, DeadlineExceeded) and shard.waits.last_was_refused
    ):
        # The provider was not called, or asked for a later call: this is no failed attempt.
        delay_s = error.retry_after_s or random.uniform(1.0, 3.0)
        await claims.release(
            runtime, shard, delay_s=delay_s, counts_as_attempt=False, reason=error.message, waiting_on="quota"
        )
    elif isinstance(error, RouteQuarantined):
        await drift.add_job_warning(
            runtime.database, runtime.alias(shard.alias), runtime.router.quarantined, shard.job_id
        )
        delay_s = error.retry_after_s or BACKOFF_CAP_S
        await outage_waits.release(runtime, shard, error, delay_s=delay_s, counts_as_attempt=False)
    elif isinstance(error, RequestError | EmbeddingsUnsupported) and not isinstance(error, UnknownAlias):
        await fail_remaining(runtime, shard, error)  # another attempt would get the same answer
    elif (outage := outage_waits.outage_of(runtime, shard, error)) is not None:
        await outage_waits.wait_for_provider(runtime, shard, outage)
    elif error is not None and shard.attempt >= runtime.settings.shard_attempts:
        log.warning(
            "a shard's attempts are spent",
            extra={"job_id": shard.job_id, "shard_id": shard.shard_id, "code": error.code},
        )
        await fail_remaining(runtime, shard, error)
    else:
        delay_s = random.uniform(0.5, 1.0) * min(BACKOFF_CAP_S, 2.0**shard.attempt)
        if error is None:
            reason = "results could not be kept"
            await claims.release(
                runtime, shard, delay_s=delay_s, counts_as_attempt=True, reason=reason, waiting_on=None
            )
        else:
            delay_s = max(delay_s, error.retry_after_s or 0.0)
            await outage_waits.release(runtime, shard, error, delay_s=delay_s, counts_as_attempt=True)
