"""The run of a claimed shard: upstream calls, recording, and release of what is not done in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping

from engine.cancellation import CancellationToken
from engine.embedding import hang_detector
from engine.embedding.embed import BULK, EmbedRun
from engine.jobs.execution.lease_keeper import JobOverdue, LeaseKeeper, ShardStopped
from engine.jobs.execution.open_inputs import OpenInputs
from engine.jobs.execution.preemption import (
    MIN_PREEMPTOR_S,
    Preemptor,
    ShardPreempted,
    StartPreemptor,
    choose_preemptor,
)
from engine.jobs.execution.release import StoppedRun, release_unfinished
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.execution.watch import ShardWatch
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import wait_report
from engine.jobs.recording.cost_limit import SpendReservation
from engine.jobs.recording.duplicate_outcomes import DuplicateFanout
from engine.jobs.recording.run_calls import RunCalls
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.jobs.scheduling.fair_share import QueuePosition
from engine.observability import failpoints
from engine.process.background import logging_errors, surviving
from engine.routing.model_choice import with_callers_routes
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from models.embedding import Alias
from models.errors import EmbedmillError, RequestError, StorageUnavailable
from models.job import JobStatus

log = logging.getLogger("embedmill.jobs")

# Calls that started just before the end of the time budget get this time to complete, then they are cancelled.
CALL_GRACE_S = 15.0
# How long a worker's slot waits while the database does not accept the last results. After that a background task does.
FINALIZE_S = 20.0
FINALIZE_STOPPING_S = 5.0
OVERDUE = "the deadline of the job has passed"
# Delay of a shard whose regular release failed.
RELEASE_DELAY_S = 30.0


class ShardRun:
    """One run of a claimed shard. `requested_at`: machine_clock() before the claim was requested.

    `until`, on time.monotonic(): end of the worker's time budget. `start_preemptor` starts the run of another shard.
    """

    def __init__(
        self,
        runtime: Runtime,
        shard: ClaimedShard,
        watch: ShardWatch,
        start_preemptor: StartPreemptor,
        *,
        requested_at: float,
        until: float,
    ) -> None:
        self._runtime = runtime
        self._shard = shard
        self._watch = watch
        self._start_preemptor = start_preemptor
        self._until = until
        self._dispatcher = Dispatcher(runtime.store, runtime.notifier, runtime.settling)
        self._started = time.monotonic()
        self._stop = CancellationToken()
        self._calls = RunCalls(runtime.journal, shard)
        self._lease = LeaseKeeper(runtime.store, shard, self._calls, requested_at, on_lost=self._stop_calls)
        self._reservation = None if shard.max_cost_usd is None else SpendReservation()
        self._writer = ResultsWriter(
            runtime.store,
            runtime.spool,
            shard,
            self._calls,
            self._stop,
            runtime.blocked_shards,
            self._reservation,
        )
        self._preemptors: list[Preemptor] = []
        self._preempting: asyncio.Task[None] | None = None
        self._still_open = shard.count - int(shard.outcome_bits.sum())
        self._log_fields = {"job_id": shard.job_id, "shard_id": shard.shard_id}

    async def run(self) -> None:
        """Make the calls, record their outcomes, and release the rest. Runs of preempting shards have ended too."""
        error: EmbedmillError | None
        wait_s = FINALIZE_S
        renewing = asyncio.create_task(self._lease.renew_until_lost())
        try:
            with surviving() as calls:
                await self._make_calls()
            error = self._stop_reason(calls.error)
        except asyncio.CancelledError:
            # A time limit, or a worker that must stop now: results so far are recorded and the shard is released, so
            # that it need not wait for its lease to run out.
            error, wait_s = ShardStopped("the worker was stopped"), FINALIZE_STOPPING_S
            for preemptor in self._preemptors:
                preemptor.run.cancel()
        finalizing = asyncio.create_task(self._finalize(error, renewing))
        self._runtime.settling.add(finalizing)
        finalizing.add_done_callback(self._runtime.settling.discard)
        await self._wait_for_last_results(
            finalizing, FINALIZE_STOPPING_S if self._runtime.draining.is_set() else wait_s
        )
        await asyncio.gather(*(preemptor.run for preemptor in self._preemptors))

    def _stop_reason(self, raised: Exception | None) -> EmbedmillError | None:
        """The error that the shard is released with. A fault of ours is logged with its traceback."""
        if raised is None or isinstance(raised, EmbedmillError):
            return raised
        log.error("a shard's run broke off", exc_info=raised, extra=self._log_fields)
        return EmbedmillError("a fault of ours")

    def observe(self, positions: Mapping[str, QueuePosition]) -> None:
        """Stop when the job has stopped; preempt this shard when another one is to be served. Called by the watch."""
        shard, now = self._shard, time.monotonic()
        current = positions.get(shard.shard_id)
        if current is None or current.job_status != JobStatus.IN_PROGRESS:
            self._writer.job_active = False
            self._lease.block_new_calls("the job wants no more of this shard")
            self._stop_calls("the job wants no more of this shard")
        elif self._preempting is None and now < self._until:
            preemptor_id = choose_preemptor(
                positions,
                shard.shard_id,
                shard.tokens,
                ran_s=now - self._started,
                unsent_tokens=self._unsent_tokens(),
            )
            if preemptor_id is not None:
                self._preempting = asyncio.create_task(self._preempt(preemptor_id))

    async def _preempt(self, preemptor_id: str) -> None:
        preemptor = self._start_preemptor(preemptor_id)
        self._preemptors.append(preemptor)
        if await preemptor.is_claimed():
            self._stop.cancel(ShardPreempted("preempted by a job that has been served less"))
        else:
            self._preempting = None

    def _unsent_tokens(self) -> int:
        """Estimated tokens of this shard for which no call was made yet."""
        sent = self._writer.recorded + self._calls.inputs
        return self._shard.tokens * max(0, self._still_open - sent) // max(1, self._still_open)

    def _stop_calls(self, reason: str) -> None:
        self._stop.cancel(ShardStopped(reason))

    async def _stop_when_draining(self) -> None:
        await self._runtime.draining.wait()
        self._stop_calls("the worker is stopping")

    async def _make_calls(self) -> None:
        runtime, shard = self._runtime, self._shard
        overdue_at = self._started + shard.seconds_left
        if overdue_at <= time.monotonic():
            raise JobOverdue(OVERDUE)
        alias = with_callers_routes(runtime.aliases, runtime.alias(shard.alias), shard.options)
        if runtime.drift_monitor.has_probes:
            await runtime.drift_monitor.refresh()
        if runtime.space_monitor.has_checks:
            await runtime.space_monitor.refresh(alias)
        await runtime.router.outages.refresh()
        stop_at = max(self._until, time.monotonic() + min(MIN_PREEMPTOR_S, runtime.settings.shard_budget_s))
        fanout = DuplicateFanout(shard, self._writer.add) if shard.open_duplicates() else None
        embedding = EmbedRun(
            upstream=runtime.upstream,
            router=runtime.router,
            alias=alias,
            lane=BULK,
            deadline=stop_at + CALL_GRACE_S,
            on_outcome=fanout or self._writer.add,
            tenant=shard.project,
            call_observer=self._lease,
            spending=self._reservation,
            waits=shard.waits,
            stop=self._stop,
        )
        inputs = OpenInputs(runtime.store, shard, embedding, self._writer, fanout, self._reservation)
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(stop_at - time.monotonic(), self._stop_calls, "the time budget of the shard is over")]
        if overdue_at < stop_at:
            timers.append(loop.call_later(overdue_at - time.monotonic(), self._stop.cancel, JobOverdue(OVERDUE)))
        beside = [
            asyncio.create_task(wait_report.report_waits(runtime.database, shard)),
            asyncio.create_task(self._stop_when_draining()),
        ]
        try:
            with self._watch.watching(shard.shard_id, self):
                await inputs.embed()
        finally:
            for timer in timers:
                timer.cancel()
            if self._preempting is not None:  # no other shard is started by a run that has ended
                self._preempting.cancel()
            for task in beside:
                task.cancel()
            if not runtime.draining.is_set():
                await hang_detector.wait_for_checks(shard.waits)

    async def _wait_for_last_results(self, finalizing: asyncio.Task[None], wait_s: float) -> None:
        """Wait for the end of the run, at most `wait_s`. Raises what the task raised."""
        done, _ = await asyncio.wait({finalizing}, timeout=wait_s)
        if done:
            finalizing.result()
        else:
            log.warning(
                "results are recorded in the background: the database does not take them", extra=self._log_fields
            )

    async def _finalize(self, error: EmbedmillError | None, renewing: asyncio.Task[None]) -> None:
        """The steps after the last call. Continues in the background while the database is unavailable."""
        runtime, shard, writer = self._runtime, self._shard, self._writer
        try:
            # Whatever fails here, the shard is released, so that it need not wait for its lease to run out.
            for end in (writer.close, lambda: self._calls.record_rest(runtime.database)):
                # Without the database the next process reads the journals of calls and results.
                with (
                    contextlib.suppress(StorageUnavailable),
                    logging_errors("a shard's run could not be closed in full", **self._log_fields),
                ):
                    await end()
            log.info(
                "shard ran",
                extra={
                    **self._log_fields,
                    "attempt": shard.attempt,
                    "inputs": writer.recorded,
                    "duration_ms": round((time.monotonic() - self._started) * 1000),
                    "code": error.code if error else None,
                },
            )
            if not writer.shard_done:
                await self._release(error)
        finally:
            renewing.cancel()
        failpoints.hit("after_commit_before_ack")
        with contextlib.suppress(StorageUnavailable), logging_errors("dispatch broke off", **self._log_fields):
            await self._dispatcher.dispatch()  # the scheduler dispatches too

    async def _release(self, error: EmbedmillError | None) -> None:
        runtime = self._runtime
        try:
            stopped = StoppedRun(runtime.store, runtime.router, self._alias(), self._shard, error)
            await release_unfinished(stopped, job_active=self._writer.job_active)
        except DATABASE_ERRORS:
            log.exception("a shard could not be given back as it should be: it is released", extra=self._log_fields)
            await claims.release(
                runtime.store,
                self._shard,
                delay_s=RELEASE_DELAY_S,
                counts_as_attempt=True,
                reason="it could not be given back",
                waiting_on=None,
            )

    def _alias(self) -> Alias | None:
        """The alias with the routes that the job's options leave; None where the configuration has it no longer."""
        runtime, shard = self._runtime, self._shard
        try:
            return with_callers_routes(runtime.aliases, runtime.alias(shard.alias), shard.options)
        except RequestError:
            return None
