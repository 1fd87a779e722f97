"""Release of an unfinished shard: queued again, cancelled or failed, by the error that stopped it and its attempts."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from engine.jobs.control.termination import cancel_idle_shards_if_ended, drop_claim
from engine.jobs.execution import outage_waits
from engine.jobs.execution.lease_keeper import ShardStopped
from engine.jobs.execution.open_inputs import FirstOccurrencesPending
from engine.jobs.execution.preemption import ShardPreempted
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.blocked import find_blocker
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.cost_limit import BudgetExhausted, release_or_pause
from engine.jobs.recording.record_outcomes import fail_remaining
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
            await cancel_idle_shards_if_ended(runtime.store, shard.job_id)
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
        await drop_claim(runtime.store, shard)
        return
    handler = next(handler for applies, handler in _BY_CAUSE if applies(runtime, shard, error))
    await handler(runtime, shard, error)


async def _requeue_at_once(runtime: Runtime, shard: ClaimedShard, error: ShardStopped) -> None:
    """The worker's own reasons: nothing has failed."""
    is_preempted, waits_for_quota = isinstance(error, ShardPreempted), shard.waits.last_was_refused
    waiting_on = "fairness" if is_preempted else "quota" if waits_for_quota else None
    await claims.release(
        runtime.store, shard, delay_s=0.0, counts_as_attempt=False, reason=error.message, waiting_on=waiting_on
    )


async def _pause_or_requeue(runtime: Runtime, shard: ClaimedShard, error: BudgetExhausted) -> None:
    await release_or_pause(runtime.store, shard, error.needed_usd)


async def _block(runtime: Runtime, shard: ClaimedShard, error: FirstOccurrencesPending) -> None:
    """Until the shard with the first occurrences has closed."""
    blocker = await find_blocker(runtime.database, shard.job_id, error.firsts)
    await claims.release(
        runtime.store,
        shard,
        delay_s=0.0 if blocker else random.uniform(0.5, 1.0),
        counts_as_attempt=False,
        reason=error.message,
        waiting_on=None,
        blocked_by=blocker,
    )


async def _wait_for_quota(runtime: Runtime, shard: ClaimedShard, error: EmbedmillError) -> None:
    """The provider was not called, or asked for a later call: this is no failed attempt."""
    delay_s = error.retry_after_s or random.uniform(1.0, 3.0)
    await claims.release(
        runtime.store, shard, delay_s=delay_s, counts_as_attempt=False, reason=error.message, waiting_on="quota"
    )


async def _wait_for_quarantine(runtime: Runtime, shard: ClaimedShard, error: RouteQuarantined) -> None:
    await drift.add_job_warning(runtime.database, runtime.alias(shard.alias), runtime.router.quarantined, shard.job_id)
    delay_s = error.retry_after_s or BACKOFF_CAP_S
    await outage_waits.release(runtime, shard, error, delay_s=delay_s, counts_as_attempt=False)


async def _wait_for_provider(runtime: Runtime, shard: ClaimedShard, error: EmbedmillError) -> None:
    outage = outage_waits.outage_of(runtime, shard, error)
    if outage is None:  # it has ended meanwhile
        await _back_off(runtime, shard, error)
    else:
        await outage_waits.wait_for_provider(runtime, shard, outage)


async def _fail(runtime: Runtime, shard: ClaimedShard, error: EmbedmillError) -> None:
    """Another attempt would get the same answer, or the attempts are spent."""
    if not _is_request_error(error):
        log.warning(
            "a shard's attempts are spent",
            extra={"job_id": shard.job_id, "shard_id": shard.shard_id, "code": error.code},
        )
    await fail_remaining(runtime.store, shard, error)


async def _back_off(runtime: Runtime, shard: ClaimedShard, error: EmbedmillError | None) -> None:
    """A failed attempt: twice as long after each."""
    delay_s = random.uniform(0.5, 1.0) * min(BACKOFF_CAP_S, 2.0**shard.attempt)
    if error is None:
        reason = "results could not be kept"
        await claims.release(
            runtime.store, shard, delay_s=delay_s, counts_as_attempt=True, reason=reason, waiting_on=None
        )
    else:
        delay_s = max(delay_s, error.retry_after_s or 0.0)
        await outage_waits.release(runtime, shard, error, delay_s=delay_s, counts_as_attempt=True)


def _is_request_error(error: EmbedmillError | None) -> bool:
    return isinstance(error, RequestError | EmbeddingsUnsupported) and not isinstance(error, UnknownAlias)


Condition = Callable[[Runtime, ClaimedShard, EmbedmillError | None], bool]
Handler = Callable[[Runtime, ClaimedShard, Any], Awaitable[None]]


def _is(kind: type[EmbedmillError]) -> Condition:
    return lambda runtime, shard, error: isinstance(error, kind)


# What stopped the run, and what becomes of its shard. The first row that applies decides.
_BY_CAUSE: tuple[tuple[Condition, Handler], ...] = (
    (_is(ShardStopped), _requeue_at_once),
    (_is(BudgetExhausted), _pause_or_requeue),
    (_is(FirstOccurrencesPending), _block),
    (
        lambda runtime, shard, error: isinstance(error, UpstreamRateLimited) and error.is_own,
        outage_waits.wait_for_inputs,
    ),
    (_is(UpstreamRateLimited), _wait_for_quota),
    (
        lambda runtime, shard, error: isinstance(error, DeadlineExceeded) and shard.waits.last_was_refused,
        _wait_for_quota,
    ),
    (_is(RouteQuarantined), _wait_for_quarantine),
    (lambda runtime, shard, error: _is_request_error(error), _fail),
    (
        lambda runtime, shard, error: outage_waits.outage_of(runtime, shard, error) is not None,
        _wait_for_provider,
    ),
    (
        lambda runtime, shard, error: error is not None and shard.attempt >= runtime.settings.shard_attempts,
        _fail,
    ),
    (lambda runtime, shard, error: True, _back_off),
)
