"""Run: a claimed shard becomes vectors, kept as they land. What is not done in time goes back, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from engine.embedding import hang_detector
from engine.embedding.embed import BULK, EmbedRun
from engine.jobs.control.pause_resume import until_unwanted
from engine.jobs.execution.lease_keeper import Lease, ShardStopped
from engine.jobs.execution.pending_inputs import work
from engine.jobs.execution.preemption import LEAST_VISIT_S, Receive, ShardPreempted, watch_for_preemption
from engine.jobs.execution.release import give_back
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import wait_report
from engine.jobs.recording.orphaned_calls import note_unanswered
from engine.jobs.scheduling.dispatch import dispatch
from engine.observability import failpoints
from engine.planning import packing
from engine.process.clock import machine_clock as clock
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from models.embedding import Alias, Batch, Input
from models.errors import EmbedmillError, StorageUnavailable

log = logging.getLogger("embedmill.jobs")

# Calls that started just before the budget ran out may still end; past this, they are cut off.
CALL_GRACE_S = 15.0
# How long a worker's slot waits for a database that is away to take the last results. Then they wait beside it.
SETTLE_S = 20.0
SETTLE_STOPPING_S = 5.0
# A shard that could not be given back as it should be waits so long before it is claimed again.
RELEASED_S = 30.0


async def run_shard(
    runtime: Runtime,
    shard_id: str,
    worker: str,
    *,
    until: float | None = None,
    on_claim: Callable[[], None] = lambda: None,
) -> bool:
    """Claim the shard, embed what is open of it, keep the results, and give back what is left. False: not claimed.

    `until`, on time.monotonic(): when the worker's time is over; by default a shard's budget from now. Shards that the
    worker lets in meanwhile have ended too when this returns.
    """
    if runtime.draining.is_set():
        await claims.decline(runtime, shard_id)
        return False
    if runtime.blocked_shards:
        log.debug("no shard is claimed while the database refuses results", extra={"shard_id": shard_id})
        return False
    asked_at = clock()
    try:
        held = await claims.claim(runtime, shard_id, worker)
    except StorageUnavailable as refusal:
        log.warning("%s; the sweep rings again", refusal.message, extra={"shard_id": shard_id})
        return False
    if held is None:
        log.debug("nothing to do for a ring", extra={"shard_id": shard_id})
        return False
    failpoints.hit("after_claim")
    on_claim()
    started = time.monotonic()
    until = started + runtime.settings.shard_budget_s if until is None else until
    guests: list[asyncio.Task[bool]] = []

    def receive(guest_id: str, on_arrival: Callable[[], None]) -> asyncio.Task[bool]:
        guest = asyncio.create_task(run_shard(runtime, guest_id, worker, until=until, on_claim=on_arrival))
        guests.append(guest)
        return guest

    keeper = ResultsWriter(runtime, held)
    lease = Lease(runtime, held, asked_at)
    keeper.on_recording = lease.under_way.recording
    keeper.on_kept.append(lease.under_way.kept)
    error: EmbedmillError | None = None
    patience_s = SETTLE_S
    beating = asyncio.create_task(lease.keep())
    try:
        await _embed(runtime, held, keeper, lease, until, receive)
    except EmbedmillError as raised:
        error = raised
    except asyncio.CancelledError:
        # A time limit, or a worker that must go now. What has landed was paid for, and the shard need not wait for its
        # lease to run out: this task ends by giving both back.
        error, patience_s = ShardStopped("the worker was stopped"), SETTLE_STOPPING_S
        for guest in guests:
            guest.cancel()
    except Exception:
        log.exception("a shard's run broke off", extra={"job_id": held.job_id, "shard_id": shard_id})
        error = EmbedmillError("a fault of ours")
    settling = asyncio.create_task(_settle(runtime, held, keeper, lease, error, beating, started))
    runtime.settling.add(settling)
    settling.add_done_callback(runtime.settling.discard)
    if runtime.draining.is_set():
        patience_s = SETTLE_STOPPING_S
    done, _ = await asyncio.wait({settling}, timeout=patience_s)
    if done:
        settling.result()
    else:
        log.warning("results wait beside the worker: the database does not take them", extra={"job_id": held.job_id})
    await asyncio.gather(*guests)
    return True


async def _settle(
    runtime: Runtime,
    held: ClaimedShard,
    keeper: ResultsWriter,
    lease: Lease,
    error: EmbedmillError | None,
    beating: asyncio.Task[None],
    started: float,
) -> None:
    """All that follows the last call. Goes on beside the worker's next shards where the database is away."""
    about = {"job_id": held.job_id, "shard_id": held.shard_id}
    try:
        # Whatever goes wrong with one of these, the shard is given back: it must not wait for its lease to run out.
        for end in (
            keeper.close,
            lambda: note_unanswered(runtime, held, lease.under_way),
        ):
            try:
                await end()
            except StorageUnavailable:
                pass  # the journals of calls and results are read by whoever comes next
            except Exception:
                log.exception("a shard's run could not be closed in full", extra=about)
        log.info(
            "shard ran",
            extra={
                "job_id": held.job_id,
                "shard_id": held.shard_id,
                "attempt": held.attempt,
                "inputs": keeper.recorded,
                "duration_ms": round((time.monotonic() - started) * 1000),
                "code": error.code if error else None,
            },
        )
        if not keeper.shard_done:
            try:
                await give_back(runtime, held, keeper, error)
            except DATABASE_ERRORS:
                log.exception("a shard could not be given back as it should be: it is released", extra=about)
                await claims.release(
                    runtime, held, delay_s=RELEASED_S, spent=True, reason="it could not be given back", waiting_on=None
                )
    finally:
        beating.cancel()
    failpoints.hit("after_commit_before_ack")
    with contextlib.suppress(*DATABASE_ERRORS):  # the sweep dispatches too
        await dispatch(runtime)


async def _embed(
    runtime: Runtime, held: ClaimedShard, keeper: ResultsWriter, lease: Lease, until: float, receive: Receive
) -> None:
    settings = runtime.settings
    alias = runtime.apply_gateway_options(runtime.alias(held.alias), held.options)
    await runtime.drift_monitor.refresh()
    await runtime.router.outages.refresh()
    stop_at = max(until, time.monotonic() + min(LEAST_VISIT_S, settings.shard_budget_s))
    flight = EmbedRun(
        upstream=runtime.upstream,
        router=runtime.router,
        alias=alias,
        lane=BULK,
        deadline=stop_at + CALL_GRACE_S,
        on_outcome=keeper.take,
        tenant=held.project,
        call_observer=lease,
        calls=held.calls,
        waits=held.waits,
    )
    keeper.flight = flight
    lease.on_lost = lambda reason: _stop(flight, reason)
    budget = asyncio.get_running_loop().call_later(
        stop_at - time.monotonic(), _stop, flight, "the time budget of the shard is over"
    )
    telling = asyncio.create_task(wait_report.report_waits(runtime, held))
    leaving = asyncio.create_task(_stop_when_draining(runtime, flight))
    still_open = held.count - int(held.settled.sum())

    def unsent_tokens() -> int:
        sent = keeper.recorded + lease.under_way.inputs
        return held.tokens * max(0, still_open - sent) // max(1, still_open)

    looking = asyncio.create_task(_stop_for_a_guest(runtime, held, flight, until, receive, unsent_tokens))
    unwanted = asyncio.create_task(_stop_when_unwanted(runtime, held, keeper, lease, flight))
    try:
        await work(runtime, held, flight, keeper, lambda waiting: _batches(runtime, held, alias, waiting))
    finally:
        budget.cancel()
        telling.cancel()
        leaving.cancel()
        looking.cancel()
        unwanted.cancel()
        if not runtime.draining.is_set():
            await hang_detector.wait_for_checks(held.waits)


def _batches(runtime: Runtime, held: ClaimedShard, alias: Alias, waiting: Sequence[int]) -> list[Batch]:
    inputs: list[Input] = [item for i in waiting if (item := held.inputs[i]) is not None]
    limits = packing.limits_of(alias.routes, inputs_per_call=runtime.settings.batch_inputs)
    indexes = [held.first_index + i for i in waiting]
    per_byte, exact = runtime.router.tokens_per_byte(alias), packing.has_exact_tokenizer(alias.routes)
    return list(packing.pack(inputs, indexes, limits, held.width, held.options, tokens_per_byte=per_byte, exact=exact))


async def _stop_when_draining(runtime: Runtime, flight: EmbedRun) -> None:
    await runtime.draining.wait()
    _stop(flight, "the worker is stopping")


async def _stop_for_a_guest(
    runtime: Runtime,
    held: ClaimedShard,
    flight: EmbedRun,
    until: float,
    receive: Receive,
    unsent_tokens: Callable[[], int],
) -> None:
    await watch_for_preemption(runtime, held, until, receive, unsent_tokens)
    flight.stop.cancel(ShardPreempted("gave way to a job that has had less"))


async def _stop_when_unwanted(
    runtime: Runtime, held: ClaimedShard, keeper: ResultsWriter, lease: Lease, flight: EmbedRun
) -> None:
    await until_unwanted(runtime, held.job_id)
    keeper.go_on = False
    lease.forbid("the job wants no more of this shard")
    _stop(flight, "the job wants no more of this shard")


def _stop(flight: EmbedRun, reason: str) -> None:
    flight.stop.cancel(ShardStopped(reason))
