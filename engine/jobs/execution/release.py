"""Release of an unfinished shard: queued again, cancelled or failed, by the error that stopped it and its attempts."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from engine.job_store import JobStore
from engine.jobs.control.termination import cancel_idle_shards_if_ended, drop_claim
from engine.jobs.execution import outage_waits
from engine.jobs.execution.lease_keeper import JobOverdue, ShardStopped
from engine.jobs.execution.open_inputs import FirstOccurrencesPending
from engine.jobs.execution.preemption import ShardPreempted
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.blocked import find_blocker
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.cost_limit import BudgetExhausted, release_or_pause
from engine.jobs.recording.record_outcomes import fail_remaining
from engine.process.background import logging_errors
from engine.process.clock import machine_clock as clock
from engine.routing import drift
from engine.routing.outages import Outage
from engine.routing.router import Router
from models.embedding import Alias
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
OVERDUE_DELAY_S = 15.0  # longer than a round of the sweep takes to come


@dataclass(frozen=True, slots=True)
class StoppedRun:
    """A run that ended before its shard was done, by `error`; None: results could not be kept.

    `alias`: with the routes that the options of the job leave; None where the configuration has no such model.
    """

    store: JobStore
    router: Router
    alias: Alias | None
    shard: ClaimedShard
    error: EmbedmillError | None

    def outage(self) -> Outage | None:
        """The outage that stopped it, unless it has ended meanwhile."""
        return outage_waits.outage_of(self.router, self.alias, self.shard, self.error)


async def release_unfinished(run: StoppedRun, *, job_active: bool) -> None:
    """Release a shard with open inputs. An unavailable database is retried for the length of a lease."""
    store, shard = run.store, run.shard
    log_fields = {"job_id": shard.job_id, "shard_id": shard.shard_id}
    until = clock() + store.settings.lease_s
    while True:
        try:
            with logging_errors("a shard could not be given back", **log_fields):
                if job_active:
                    await next(handler for applies, handler in _BY_CAUSE if applies(run))(run, run.error)
                else:
                    await drop_claim(store, shard)
                # The job may have been cancelled or have expired while the shard ran.
                await cancel_idle_shards_if_ended(store, shard.job_id)
                return
            # For example the reason could not be stored: the shard is released without it, and the attempt counts.
            if run.error is None:
                return
            run = replace(run, error=None)
        except StorageUnavailable:
            if clock() > until:
                log.warning("a shard is left to its lease", extra=log_fields)
                return
        await asyncio.sleep(RETRY_EVERY_S)


async def _requeue_at_once(run: StoppedRun, error: ShardStopped) -> None:
    """The worker's own reasons: nothing has failed."""
    is_preempted, waits_for_quota = isinstance(error, ShardPreempted), run.shard.waits.last_was_refused
    waiting_on = "fairness" if is_preempted else "quota" if waits_for_quota else None
    await claims.release(
        run.store, run.shard, delay_s=0.0, counts_as_attempt=False, reason=error.message, waiting_on=waiting_on
    )


async def _leave_to_sweep(run: StoppedRun, error: JobOverdue) -> None:
    """The sweep ends the job before the shard is due again."""
    await claims.release(
        run.store,
        run.shard,
        delay_s=OVERDUE_DELAY_S,
        counts_as_attempt=False,
        reason=error.message,
        waiting_on=None,
    )


async def _pause_or_requeue(run: StoppedRun, error: BudgetExhausted) -> None:
    await release_or_pause(run.store, run.shard, error.needed_usd)


async def _block(run: StoppedRun, error: FirstOccurrencesPending) -> None:
    """Until the shard with the first occurrences has closed."""
    blocker = await find_blocker(run.store.database, run.shard.job_id, error.firsts)
    await claims.release(
        run.store,
        run.shard,
        delay_s=0.0 if blocker else random.uniform(0.5, 1.0),
        counts_as_attempt=False,
        reason=error.message,
        waiting_on=None,
        blocked_by=blocker,
    )


async def _wait_for_quota(run: StoppedRun, error: EmbedmillError) -> None:
    """The provider was not called, or asked for a later call: this is no failed attempt."""
    delay_s = error.retry_after_s or random.uniform(1.0, 3.0)
    await claims.release(
        run.store, run.shard, delay_s=delay_s, counts_as_attempt=False, reason=error.message, waiting_on="quota"
    )


async def _wait_for_quarantine(run: StoppedRun, error: RouteQuarantined) -> None:
    if run.alias is not None:
        await drift.add_job_warning(run.store.database, run.alias, run.router.quarantined, run.shard.job_id)
    delay_s = error.retry_after_s or BACKOFF_CAP_S
    await outage_waits.release(run.store, run.alias, run.shard, error, delay_s=delay_s, counts_as_attempt=False)


async def _wait_for_provider(run: StoppedRun, error: EmbedmillError) -> None:
    outage = run.outage()
    if outage is None:  # it has ended meanwhile
        await _back_off(run, error)
    else:
        await outage_waits.wait_for_provider(run.store, run.shard, outage)


async def _fail(run: StoppedRun, error: EmbedmillError) -> None:
    """Another attempt would get the same answer, or the attempts are spent."""
    if not _is_request_error(error):
        log.warning(
            "a shard's attempts are spent",
            extra={"job_id": run.shard.job_id, "shard_id": run.shard.shard_id, "code": error.code},
        )
    await fail_remaining(run.store, run.shard, error)


async def _back_off(run: StoppedRun, error: EmbedmillError | None) -> None:
    """A failed attempt: twice as long after each."""
    delay_s = random.uniform(0.5, 1.0) * min(BACKOFF_CAP_S, 2.0**run.shard.attempt)
    if error is None:
        reason = "results could not be kept"
        await claims.release(
            run.store, run.shard, delay_s=delay_s, counts_as_attempt=True, reason=reason, waiting_on=None
        )
    else:
        delay_s = max(delay_s, error.retry_after_s or 0.0)
        await outage_waits.release(run.store, run.alias, run.shard, error, delay_s=delay_s, counts_as_attempt=True)


def _is_request_error(error: EmbedmillError | None) -> bool:
    return isinstance(error, RequestError | EmbeddingsUnsupported) and not isinstance(error, UnknownAlias)


Condition = Callable[[StoppedRun], bool]
Handler = Callable[[StoppedRun, Any], Awaitable[None]]


def _is(kind: type[EmbedmillError]) -> Condition:
    return lambda run: isinstance(run.error, kind)


# What stopped the run, and what becomes of its shard. The first row that applies decides.
_BY_CAUSE: tuple[tuple[Condition, Handler], ...] = (
    (_is(JobOverdue), _leave_to_sweep),
    (_is(ShardStopped), _requeue_at_once),
    (_is(BudgetExhausted), _pause_or_requeue),
    (_is(FirstOccurrencesPending), _block),
    (
        lambda run: isinstance(run.error, UpstreamRateLimited) and run.error.is_own,
        lambda run, error: outage_waits.wait_for_inputs(run.store, run.shard, error),
    ),
    (_is(UpstreamRateLimited), _wait_for_quota),
    (
        lambda run: isinstance(run.error, DeadlineExceeded) and run.shard.waits.last_was_refused,
        _wait_for_quota,
    ),
    (_is(RouteQuarantined), _wait_for_quarantine),
    (lambda run: _is_request_error(run.error), _fail),
    (
        lambda run: run.outage() is not None,
        _wait_for_provider,
    ),
    (
        lambda run: run.error is not None and run.shard.attempt >= run.store.settings.shard_attempts,
        _fail,
    ),
    (lambda run: True, _back_off),
)
