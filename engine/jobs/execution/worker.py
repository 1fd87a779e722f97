"""The run of a shard: claim, upstream calls, recording, and release of what is not done in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from engine.embedding import hang_detector
from engine.embedding.embed import BULK, EmbedRun
from engine.jobs.control.pause_resume import wait_until_job_stops
from engine.jobs.execution.lease_keeper import LeaseKeeper, ShardStopped
from engine.jobs.execution.pending_inputs import process_open_inputs
from engine.jobs.execution.preemption import MIN_PREEMPTOR_S, ShardPreempted, StartShard, watch_for_preemption
from engine.jobs.execution.release import release_unfinished
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import wait_report
from engine.jobs.recording.orphaned_calls import record_unanswered
from engine.jobs.scheduling.dispatch import dispatch
from engine.observability import failpoints
from engine.planning import packing
from engine.process.clock import machine_clock as clock
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from models.embedding import Alias, Batch, Input
from models.errors import EmbedmillError, StorageUnavailable

log = logging.getLogger("embedmill.jobs")

# Calls that started just before the end of the time budget get this time to complete, then they are cancelled.
CALL_GRACE_S = 15.0
# How long a worker's slot waits while the database does not accept the last results. After that a background task does.
FINALIZE_S = 20.0
FINALIZE_STOPPING_S = 5.0
# Delay of a shard whose regular release failed.
RELEASE_DELAY_S = 30.0


async def run_shard(
    runtime: Runtime,
    shard_id: str,
    worker: str,
    *,
    until: float | None = None,
    on_claim: Callable[[], None] = lambda: None,
) -> bool:
    """Claim the shard, embed its open inputs, record the outcomes, and release the rest. False: not claimed.

    `until`, on time.monotonic(): end of the worker's time budget; by default EMBEDMILL_SHARD_BUDGET_S from now. Runs
    of preempting shards have ended too when this returns.
    """
    if runtime.draining.is_set():
        await claims.requeue_unclaimed(runtime, shard_id)
        return False
    if runtime.blocked_shards:
        log.debug("no shard is claimed while the database refuses results", extra={"shard_id": shard_id})
        return False
    requested_at = clock()
    shard = await _claim(runtime, shard_id, worker)
    if shard is None:
        return False
    failpoints.hit("after_claim")
    on_claim()
    started = time.monotonic()
    until = started + runtime.settings.shard_budget_s if until is None else until
    preemptors: list[asyncio.Task[bool]] = []

    def start_shard(preemptor_id: str, on_arrival: Callable[[], None]) -> asyncio.Task[bool]:
        preemptor = asyncio.create_task(run_shard(runtime, preemptor_id, worker, until=until, on_claim=on_arrival))
        preemptors.append(preemptor)
        return preemptor

    writer = ResultsWriter(runtime, shard)
    lease = LeaseKeeper(runtime, shard, requested_at)
    writer.on_recording = lease.in_flight.recording
    writer.on_durable.append(lease.in_flight.mark_durable)
    error: EmbedmillError | None = None
    wait_s = FINALIZE_S
    renewing = asyncio.create_task(lease.renew_until_lost())
    try:
        await _run_calls(runtime, shard, writer, lease, until, start_shard)
    except EmbedmillError as raised:
        error = raised
    except asyncio.CancelledError:
        # A time limit, or a worker that must stop now: results so far are recorded and the shard is released, so that
        # it need not wait for its lease to run out.
        error, wait_s = ShardStopped("the worker was stopped"), FINALIZE_STOPPING_S
        for preemptor in preemptors:
            preemptor.cancel()
    except Exception:
        log.exception("a shard's run broke off", extra={"job_id": shard.job_id, "shard_id": shard_id})
        error = EmbedmillError("a fault of ours")
    finalizing = asyncio.create_task(_finalize(runtime, shard, writer, lease, error, renewing, started))
    runtime.settling.add(finalizing)
    finalizing.add_done_callback(runtime.settling.discard)
    await _wait_for_last_results(finalizing, FINALIZE_STOPPING_S if runtime.draining.is_set() else wait_s, shard.job_id)
    await asyncio.gather(*preemptors)
    return True


async def _claim(runtime: Runtime, shard_id: str, worker: str) -> ClaimedShard | None:
    """Claim the shard; None when it cannot be claimed, or the database is unavailable."""
    try:
        shard = await claims.claim(runtime, shard_id, worker)
    except StorageUnavailable as error:
        log.warning("%s; the sweep announces the shard again", error.message, extra={"shard_id": shard_id})
        return None
    if shard is None:
        log.debug("an announced shard could not be claimed", extra={"shard_id": shard_id})
    return shard


async def _wait_for_last_results(finalizing: asyncio.Task[None], wait_s: float, job_id: str) -> None:
    """Wait for the end of a run, at most `wait_s`. Raises what the task raised."""
    done, _ = await asyncio.wait({finalizing}, timeout=wait_s)
    if done:
        finalizing.result()
    else:
        log.warning("results are recorded in the background: the database does not take them", extra={"job_id": job_id})


async def _finalize(
    runtime: Runtime,
    shard: ClaimedShard,
    writer: ResultsWriter,
    lease: LeaseKeeper,
    error: EmbedmillError | None,
    renewing: asyncio.Task[None],
    started: float,
) -> None:
    """The steps after the last call. Continues in the background while the database is unavailable."""
    log_fields = {"job_id": shard.job_id, "shard_id": shard.shard_id}
    try:
        # Whatever fails here, the shard is released, so that it need not wait for its lease to run out.
        for end in (
            writer.close,
            lambda: record_unanswered(runtime, shard, lease.in_flight),
        ):
            try:
                await end()
            except StorageUnavailable:
                pass  # the next process reads the journals of calls and results
            except Exception:
                log.exception("a shard's run could not be closed in full", extra=log_fields)
        log.info(
            "shard ran",
            extra={
                "job_id": shard.job_id,
                "shard_id": shard.shard_id,
                "attempt": shard.attempt,
                "inputs": writer.recorded,
                "duration_ms": round((time.monotonic() - started) * 1000),
                "code": error.code if error else None,
            },
        )
        if not writer.shard_done:
            try:
                await release_unfinished(runtime, shard, writer, error)
            except DATABASE_ERRORS:
                log.exception("a shard could not be given back as it should be: it is released", extra=log_fields)
                await claims.release(
                    runtime,
                    shard,
                    delay_s=RELEASE_DELAY_S,
                    counts_as_attempt=True,
                    reason="it could not be given back",
                    waiting_on=None,
                )
    finally:
        renewing.cancel()
    failpoints.hit("after_commit_before_ack")
    with contextlib.suppress(*DATABASE_ERRORS):  # the sweep dispatches too
        await dispatch(runtime)


async def _run_calls(
    runtime: Runtime,
    shard: ClaimedShard,
    writer: ResultsWriter,
    lease: LeaseKeeper,
    until: float,
    start_shard: StartShard,
) -> None:
    settings = runtime.settings
    alias = runtime.apply_gateway_options(runtime.alias(shard.alias), shard.options)
    await runtime.drift_monitor.refresh()
    await runtime.router.outages.refresh()
    stop_at = max(until, time.monotonic() + min(MIN_PREEMPTOR_S, settings.shard_budget_s))
    run = EmbedRun(
        upstream=runtime.upstream,
        router=runtime.router,
        alias=alias,
        lane=BULK,
        deadline=stop_at + CALL_GRACE_S,
        on_outcome=writer.add,
        tenant=shard.project,
        call_observer=lease,
        calls=shard.calls,
        waits=shard.waits,
    )
    writer.run = run
    lease.on_lost = lambda reason: _stop(run, reason)
    budget = asyncio.get_running_loop().call_later(
        stop_at - time.monotonic(), _stop, run, "the time budget of the shard is over"
    )
    reporting = asyncio.create_task(wait_report.report_waits(runtime, shard))
    watching_drain = asyncio.create_task(_stop_when_draining(runtime, run))
    still_open = shard.count - int(shard.outcome_bits.sum())

    def unsent_tokens() -> int:
        sent = writer.recorded + lease.in_flight.inputs
        return shard.tokens * max(0, still_open - sent) // max(1, still_open)

    preempting = asyncio.create_task(_stop_when_preempted(runtime, shard, run, until, start_shard, unsent_tokens))
    stopping = asyncio.create_task(_stop_when_job_stops(runtime, shard, writer, lease, run))
    try:
        await process_open_inputs(
            runtime, shard, run, writer, lambda positions: _batches(runtime, shard, alias, positions)
        )
    finally:
        budget.cancel()
        reporting.cancel()
        watching_drain.cancel()
        preempting.cancel()
        stopping.cancel()
        if not runtime.draining.is_set():
            await hang_detector.wait_for_checks(shard.waits)


def _batches(runtime: Runtime, shard: ClaimedShard, alias: Alias, positions: Sequence[int]) -> list[Batch]:
    inputs: list[Input] = [item for i in positions if (item := shard.inputs[i]) is not None]
    limits = packing.limits_of(alias.routes, inputs_per_call=runtime.settings.batch_inputs)
    indexes = [shard.first_index + i for i in positions]
    ratio, exact = runtime.router.tokens_per_byte(alias), packing.has_exact_tokenizer(alias.routes)
    return list(packing.pack(inputs, indexes, limits, shard.width, shard.options, tokens_per_byte=ratio, exact=exact))


async def _stop_when_draining(runtime: Runtime, run: EmbedRun) -> None:
    await runtime.draining.wait()
    _stop(run, "the worker is stopping")


async def _stop_when_preempted(
    runtime: Runtime,
    shard: ClaimedShard,
    run: EmbedRun,
    until: float,
    start_shard: StartShard,
    unsent_tokens: Callable[[], int],
) -> None:
    await watch_for_preemption(runtime, shard, until, start_shard, unsent_tokens)
    run.stop.cancel(ShardPreempted("gave way to a job that has had less"))


async def _stop_when_job_stops(
    runtime: Runtime, shard: ClaimedShard, writer: ResultsWriter, lease: LeaseKeeper, run: EmbedRun
) -> None:
    await wait_until_job_stops(runtime, shard.job_id)
    writer.job_active = False
    lease.block_new_calls("the job wants no more of this shard")
    _stop(run, "the job wants no more of this shard")


def _stop(run: EmbedRun, reason: str) -> None:
    run.stop.cancel(ShardStopped(reason))
