"""Run: a claimed shard becomes vectors, kept as they land. What is not done in time goes back, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time

from engine import failpoints, planning
from engine.embedding import BULK, Flight, embed
from engine.jobs import claim as claims
from engine.jobs.claim import Claim
from engine.jobs.dispatch import dispatch
from engine.jobs.ending import let_go
from engine.jobs.keeper import Keeper
from engine.jobs.record import fail_rest
from engine.runtime import Runtime
from models.embedding import Alias, Batch, Input
from models.errors import (
    EmbedmillError,
    RequestError,
    StorageUnavailable,
    UnknownAlias,
    UpstreamError,
    UpstreamRateLimited,
)

log = logging.getLogger("embedmill.jobs")

# Calls that started just before the budget ran out may still end; past this, they are cut off.
CALL_GRACE_S = 15.0
BACKOFF_CAP_S = 60.0


class ToldToStop(EmbedmillError):
    """The worker lets go of a shard that may go on elsewhere: budget over, lease lost, job ended, shutdown."""

    code = "stopped"


async def run_shard(runtime: Runtime, shard_id: str, worker: str) -> None:
    """Claim the shard, embed what is open of it, keep the results, and give back what is left."""
    if runtime.draining.is_set():
        await claims.decline(runtime, shard_id)
        return
    try:
        held = await claims.claim(runtime, shard_id, worker)
    except StorageUnavailable:
        log.warning("the database does not answer; the sweep rings again", extra={"shard_id": shard_id})
        return
    if held is None:
        log.debug("nothing to do for a ring", extra={"shard_id": shard_id})
        return
    failpoints.hit("after_claim")
    started = time.monotonic()
    keeper = Keeper(runtime, held)
    error: EmbedmillError | None = None
    try:
        await _embed(runtime, held, keeper)
    except EmbedmillError as raised:
        error = raised
    except asyncio.CancelledError:
        # A time limit, or a worker that must go now. What has landed was paid for, and the shard need not wait for its
        # lease to run out: this task ends by giving both back.
        error = ToldToStop("the worker was stopped")
    await keeper.close()
    log.info(
        "shard ran",
        extra={
            "job_id": held.job_id,
            "shard_id": shard_id,
            "attempt": held.attempt,
            "inputs": keeper.recorded,
            "duration_ms": round((time.monotonic() - started) * 1000),
            "code": error.code if error else None,
        },
    )
    if not keeper.shard_done:
        await _give_back(runtime, held, keeper, error)
    failpoints.hit("after_commit_before_ack")
    with contextlib.suppress(StorageUnavailable):  # the sweep dispatches too
        await dispatch(runtime)


async def _embed(runtime: Runtime, held: Claim, keeper: Keeper) -> None:
    settings = runtime.settings
    alias = runtime.narrowed(runtime.alias(held.alias), held.options)
    flight = Flight(
        upstream=runtime.upstream,
        router=runtime.router,
        alias=alias,
        lane=BULK,
        deadline=time.monotonic() + settings.shard_budget_s + CALL_GRACE_S,
        landed=keeper.take,
    )
    keeper.flight = flight
    budget = asyncio.get_running_loop().call_later(
        settings.shard_budget_s, _stop, flight, "the time budget of the shard is over"
    )
    beating = asyncio.create_task(_keep_lease(runtime, held, flight))
    leaving = asyncio.create_task(_stop_when_draining(runtime, flight))
    try:
        await embed(flight, _batches(runtime, held, alias), concurrency=settings.shard_concurrency)
    finally:
        budget.cancel()
        beating.cancel()
        leaving.cancel()


def _batches(runtime: Runtime, held: Claim, alias: Alias) -> list[Batch]:
    waiting = held.waiting()
    inputs: list[Input] = [item for i in waiting if (item := held.inputs[i]) is not None]
    limits = planning.limits_of(alias.routes, inputs_per_call=runtime.settings.batch_inputs)
    indexes = [held.first_index + i for i in waiting]
    return list(planning.pack(inputs, indexes, limits, held.width, held.options))


async def _keep_lease(runtime: Runtime, held: Claim, flight: Flight) -> None:
    """Renew the lease until cancelled. Without it no new call starts: another worker may have the shard."""
    settings = runtime.settings
    lease_until = time.monotonic() + settings.lease_s
    while True:
        await asyncio.sleep(settings.heartbeat_s)
        try:
            async with asyncio.timeout(settings.heartbeat_s):
                ours = await claims.heartbeat(runtime, held)
        except (StorageUnavailable, TimeoutError):
            if time.monotonic() + settings.heartbeat_s > lease_until:
                _stop(flight, "the lease could not be renewed")
                return
            continue
        if not ours:
            _stop(flight, "the shard is no longer this worker's")
            return
        lease_until = time.monotonic() + settings.lease_s


async def _stop_when_draining(runtime: Runtime, flight: Flight) -> None:
    await runtime.draining.wait()
    _stop(flight, "the worker is stopping")


def _stop(flight: Flight, reason: str) -> None:
    flight.stopping = flight.stopping or ToldToStop(reason)


async def _give_back(runtime: Runtime, held: Claim, keeper: Keeper, error: EmbedmillError | None) -> None:
    """Release, let go, or fail what is left: by what stopped it, and by how often that has happened."""
    try:
        if not keeper.go_on:
            await let_go(runtime, held.job_id, held.shard_id, held.fence)
        elif isinstance(error, ToldToStop):
            await claims.release(runtime, held, delay_s=0.0, spent=False, reason=error.message, waiting_on=None)
        elif isinstance(error, UpstreamRateLimited):
            delay_s = error.retry_after_s or random.uniform(1.0, 3.0)
            await claims.release(runtime, held, delay_s=delay_s, spent=False, reason=error.message, waiting_on="quota")
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
    except StorageUnavailable:
        log.warning("a shard is left to its lease", extra={"job_id": held.job_id, "shard_id": held.shard_id})
