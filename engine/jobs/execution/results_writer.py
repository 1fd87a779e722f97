"""Results writer: records outcomes in the database as they arrive, at least every second and every thousand inputs.

Results are paid for. While the database is unavailable they are kept in memory and recording is retried. After two
seconds they are written to the spool too, where they survive the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import update

from engine.cancellation import CancellationToken
from engine.durability.spool import Spool, SpooledFile
from engine.job_store import JobStore
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.cost_limit import SpendReservation
from engine.jobs.recording.record_outcomes import Recorded, record
from engine.jobs.recording.run_calls import RunCalls
from engine.jobs.recording.spool_replay import encode_spool
from engine.observability import failpoints
from engine.process.background import surviving
from engine.storage.database import DATABASE_ERRORS
from models.base import random_id
from models.embedding import BatchOutcome, InputError
from models.errors import EmbedmillError, StorageBlocked, StorageRefused, StorageUnavailable
from models.job import Job, JobStatus

log = logging.getLogger("embedmill.jobs")

RECORD_INPUTS = 1024
RECORD_EVERY_S = 1.0
SPOOL_AFTER_S = 2.0
# After this time without an answer the database is asked again on another connection.
DATABASE_REPLY_S = 30.0
RETRY_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
MAX_UNKNOWN_FAULTS = 3  # of one write, before its inputs fail


@dataclass(slots=True)
class _PendingWrite:
    """Outcomes that are not in the database yet, and their spool file."""

    parts: list[BatchOutcome]
    file: SpooledFile | None = None
    writing: threading.Lock = field(default_factory=threading.Lock)
    record_id: str = field(default_factory=lambda: random_id("use"))


class ResultsWriter:
    """Collects outcomes and records them from a task of its own, concurrently with further calls.

    `calls` of the run leave the journal once their outcomes are durable: in the database or in the spool. `stop` is
    cancelled when nothing more is to be paid for. `blocked_shards`: of this process, those whose results the
    database refuses. `reservation`: of a job with a cost limit.
    """

    def __init__(
        self,
        store: JobStore,
        spool: Spool,
        shard: ClaimedShard,
        calls: RunCalls,
        stop: CancellationToken,
        blocked_shards: set[str],
        reservation: SpendReservation | None = None,
    ) -> None:
        self._store = store
        self._spool_files = spool
        self._blocked_shards = blocked_shards
        self._shard = shard
        self._calls = calls
        self._stop_token = stop
        self._reservation = reservation
        self._unqueued: list[BatchOutcome] = []
        self._inputs = 0
        self._pending: deque[_PendingWrite] = deque()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._task = asyncio.create_task(self._run())
        self.recorded = 0
        self.shard_done = False
        self.job_active = True

    def add(self, outcome: BatchOutcome) -> None:
        """Collect an outcome, to be recorded within RECORD_EVERY_S."""
        failpoints.hit("after_upstream_before_commit")
        if self._reservation is not None:
            self._reservation.on_outcome(outcome)
        self._unqueued.append(outcome)
        self._inputs += len(outcome.indexes)
        if self._inputs >= RECORD_INPUTS:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECORD_EVERY_S, self._due.set)

    def record_now(self) -> None:
        """Record the outcomes so far without waiting for more."""
        self._due.set()

    async def close(self) -> None:
        """Record all remaining outcomes, however long the database is unavailable. When cancelled, spool them."""
        self._closing = True
        self._due.set()
        await self._task

    async def _run(self) -> None:
        try:
            while not (self._closing and not self._unqueued):
                await self._due.wait()
                self._due.clear()
                await self._record_all()
        except asyncio.CancelledError:
            self._spool_on_exit()
            raise
        finally:
            self._blocked_shards.discard(self._shard.shard_id)

    async def _record_all(self) -> None:
        unavailable_since: float | None = None
        unknown_faults = 0
        pauses = iter(RETRY_PAUSES_S)
        while self._next_pending() is not None:
            pending = self._pending[0]
            try:
                with surviving(passing=StorageUnavailable) as recording:  # these results are paid for
                    recorded = await self._record_bounded(pending)
                    failpoints.hit("after_commit")
            except StorageUnavailable as error:
                unavailable_since = unavailable_since or time.monotonic()
                if isinstance(error, StorageBlocked):
                    await self._block(error)
                if time.monotonic() - unavailable_since >= SPOOL_AFTER_S:
                    await self._spool()
                await asyncio.sleep(next(pauses, RETRY_PAUSES_S[-1]))
                continue
            if (fault := recording.error) is not None:
                # Only the database's own refusal of values is known to repeat.
                if not isinstance(fault, StorageRefused) and unknown_faults < MAX_UNKNOWN_FAULTS:
                    unknown_faults += 1
                    log.warning("results could not be recorded, and are recorded again", exc_info=fault)
                    await asyncio.sleep(next(pauses, RETRY_PAUSES_S[-1]))
                    continue
                await self._fail_unrecordable(pending, fault)
            else:
                self._on_recorded(pending, recorded)
                self._pending.popleft()
            unavailable_since, unknown_faults, pauses = None, 0, iter(RETRY_PAUSES_S)
            self._blocked_shards.discard(self._shard.shard_id)

    async def _block(self, error: StorageBlocked) -> None:
        """The database refuses results until an operator acts: start no calls, keep the results, and log it."""
        shard = self._shard
        if shard.shard_id in self._blocked_shards:
            return
        self._blocked_shards.add(shard.shard_id)
        self._stop(error.message)
        log.error(
            "paid results wait, and no more is paid for: %s; %s",
            error.message,
            error.advice,
            extra={"job_id": shard.job_id, "shard_id": shard.shard_id},
        )
        with contextlib.suppress(*DATABASE_ERRORS):
            async with self._store.database.write() as connection:
                await connection.execute(
                    update(Job)
                    .where(Job.id == shard.job_id, Job.status == JobStatus.IN_PROGRESS)
                    .values(waiting_on="database", next_attempt_at=None, version=Job.version + 1)
                )

    async def _fail_unrecordable(self, pending: _PendingWrite, error: Exception) -> None:
        """The database will never accept these outcomes: charge them once, and fail their inputs with the reason.

        Each batch is recorded separately first, so that only the refused one fails. The vectors stay in a file.
        """
        shard = self._shard
        self._pending.popleft()
        if len(pending.parts) > 1:
            if pending.file is not None:
                pending.file.remove()
            self._pending.extendleft(self._to_record([part]) for part in reversed(pending.parts))
            return
        [part] = pending.parts
        file = pending.file or await asyncio.to_thread(self._write, pending)
        if file is not None:
            file.quarantine()
        self._notify_durable(pending.parts)
        log_fields = {"job_id": shard.job_id, "shard_id": shard.shard_id, "inputs": len(part.indexes)}
        if isinstance(error, StorageRefused):
            log.error("paid results could not be recorded: %s", error.message, extra=log_fields)
        else:
            log.error("paid results could not be recorded", exc_info=error, extra=log_fields)
        message = error.message if isinstance(error, StorageRefused) else "the result could not be recorded"
        code = error.code if isinstance(error, EmbedmillError) else EmbedmillError.code
        failed = part._replace(vectors=None, error=InputError(code, message, retryable=True))
        # First with its ledger row, because the provider bills it; then without, in case the row is what is refused.
        for attempt in (failed, failed._replace(route=None, tokens=0, cost_usd=Decimal(0))):
            with surviving() as recording:
                recorded = await self._record([attempt])
            if (refused := recording.error) is not None:
                log.warning("the failure of inputs could not be recorded: %s", type(refused).__name__, extra=log_fields)
            else:
                self._on_recorded(_PendingWrite([attempt]), recorded)
                return
        self._stop("results could not be recorded")

    def _next_pending(self) -> _PendingWrite | None:
        """The next outcomes to record, after all collected ones were appended to the queue."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unqueued:
            self._pending.append(self._to_record(self._unqueued))
            self._unqueued, self._inputs = [], 0
        return self._pending[0] if self._pending else None

    def _to_record(self, parts: list[BatchOutcome]) -> _PendingWrite:
        pending = _PendingWrite(parts)
        self._calls.recording(parts, pending.record_id)
        return pending

    def _notify_durable(self, parts: list[BatchOutcome]) -> None:
        self._calls.mark_durable(parts)
        if self._reservation is not None:
            self._reservation.on_durable(parts)

    async def _record_bounded(self, pending: _PendingWrite) -> Recorded:
        """Record, and spool if that takes too long. Raises StorageUnavailable; the caller repeats it then."""
        recording = asyncio.ensure_future(self._record(pending.parts, pending.record_id))
        try:
            if not (await asyncio.wait({recording}, timeout=SPOOL_AFTER_S))[0]:
                await self._spool()
                if not (await asyncio.wait({recording}, timeout=DATABASE_REPLY_S))[0]:
                    raise StorageUnavailable("the database does not answer")
            return recording.result()
        finally:
            recording.cancel()

    async def _record(self, parts: list[BatchOutcome], record_id: str = "") -> Recorded:
        calls = self._calls.without_results()
        recorded = await record(self._store, self._shard, parts, record_id, calls)
        self._calls.mark_recorded(calls)
        return recorded

    def _on_recorded(self, pending: _PendingWrite, recorded: Recorded) -> None:
        if pending.file is not None:
            pending.file.remove()
        self._notify_durable(pending.parts)
        self.recorded += sum(len(part.indexes) for part in pending.parts)
        self.shard_done = recorded.shard_done
        if not recorded.job_active and not recorded.shard_done:
            self.job_active = False
            self._stop("the job wants no more of this shard")

    async def _spool(self) -> None:
        self._next_pending()
        for pending in self._pending:
            if pending.file is None and await asyncio.to_thread(self._write, pending) is not None:
                self._notify_durable(pending.parts)

    def _write(self, pending: _PendingWrite) -> SpooledFile | None:
        """The spool file, written once: a write in a thread that nobody waits for any more is waited for here."""
        with pending.writing:
            if pending.file is None:
                body = encode_spool(self._shard, pending.parts, pending.record_id, self._calls.without_results())
                pending.file = self._spool_files.write(self._shard.shard_id, body)
            return pending.file

    def _spool_on_exit(self) -> None:
        """Spool everything because the process ends. Other processes replay the files."""
        self._next_pending()
        for pending in self._pending:
            file = self._write(pending)
            if file is not None:
                self._notify_durable(pending.parts)
                file.unlock()
            else:
                inputs = sum(len(part.indexes) for part in pending.parts)
                log.error("paid results were lost", extra={"job_id": self._shard.job_id, "inputs": inputs})

    def _stop(self, reason: str) -> None:
        self._stop_token.cancel(EmbedmillError(reason))
