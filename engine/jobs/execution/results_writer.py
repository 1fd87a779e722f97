"""Keeping: results go into the database as they land, at least once a second and once per thousand inputs.

A result was paid for. While the database is away it is held here and offered again and again, and, once that has lasted
for two seconds, it lies in the spool too, where it outlives this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import update

from engine.durability.spool import SpooledFile
from engine.embedding.embed import EmbedRun
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.record import Recorded, record
from engine.jobs.recording.spool_replay import packed
from engine.observability import failpoints
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from models.base import trace_id
from models.embedding import BatchOutcome, InputError
from models.errors import EmbedmillError, StorageBlocked, StorageRefused, StorageUnavailable
from models.job import Job, JobStatus

log = logging.getLogger("embedmill.jobs")

RECORD_INPUTS = 1024
RECORD_EVERY_S = 1.0
SPOOL_AFTER_S = 2.0
# A database that has not answered for this long is asked again on another connection.
ANSWER_S = 30.0
PAUSE_S = (0.2, 0.5, 1.0, 2.0)


@dataclass(slots=True)
class _Waiting:
    """Results that the database has not taken yet, and the file that holds them too."""

    parts: list[BatchOutcome]
    file: SpooledFile | None = None
    record_id: str = field(default_factory=lambda: trace_id("use"))


class ResultsWriter:
    """Takes what lands and records it from a task of its own, beside the calls that are still under way."""

    def __init__(self, runtime: Runtime, held: ClaimedShard) -> None:
        self._runtime = runtime
        self._held = held
        self._landed: list[BatchOutcome] = []
        self._inputs = 0
        self._waiting: deque[_Waiting] = deque()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._task = asyncio.create_task(self._run())
        self.flight: EmbedRun | None = None
        # Told of results and the id that they are recorded under, before the database or the spool gets them.
        self.on_recording: Callable[[list[BatchOutcome], str], None] = lambda parts, record_id: None
        # Told, in this order, of results that are safe: in the database, or in the spool.
        self.on_kept: list[Callable[[list[BatchOutcome]], None]] = []
        self.recorded = 0
        self.shard_done = False
        self.go_on = True

    def take(self, landed: BatchOutcome) -> None:
        failpoints.hit("after_upstream_before_commit")
        self._landed.append(landed)
        self._inputs += len(landed.indexes)
        if self._inputs >= RECORD_INPUTS:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECORD_EVERY_S, self._due.set)

    def record_now(self) -> None:
        """Record what has landed without waiting for more."""
        self._due.set()

    async def close(self) -> None:
        """Record the rest, however long the database is away. Cancelled, it leaves the rest to the spool."""
        self._closing = True
        self._due.set()
        await self._task

    async def _run(self) -> None:
        try:
            while not (self._closing and not self._landed):
                await self._due.wait()
                self._due.clear()
                await self._record_all()
        except asyncio.CancelledError:
            self._leave()
            raise
        finally:
            self._runtime.blocked_shards.discard(self._held.shard_id)

    async def _record_all(self) -> None:
        away_since: float | None = None
        pauses = iter(PAUSE_S)
        while self._next() is not None:
            waiting = self._waiting[0]
            try:
                recorded = await self._offer(waiting)
                failpoints.hit("after_commit")
            except StorageUnavailable as error:
                away_since = away_since or time.monotonic()
                if isinstance(error, StorageBlocked):
                    await self._block(error)
                if time.monotonic() - away_since >= SPOOL_AFTER_S:
                    await self._spool()
                await asyncio.sleep(next(pauses, PAUSE_S[-1]))
                continue
            except Exception as error:
                await self._give_up(waiting, error)
            else:
                self._note(waiting, recorded)
                self._waiting.popleft()
            away_since, pauses = None, iter(PAUSE_S)
            self._runtime.blocked_shards.discard(self._held.shard_id)

    async def _block(self, error: StorageBlocked) -> None:
        """The database takes no result until an operator acts: pay for no more, keep what there is, and say so."""
        held = self._held
        if held.shard_id in self._runtime.blocked_shards:
            return
        self._runtime.blocked_shards.add(held.shard_id)
        self._stop(error.message)
        log.error(
            "paid results wait, and no more is paid for: %s; %s",
            error.message,
            error.advice,
            extra={"job_id": held.job_id, "shard_id": held.shard_id},
        )
        with contextlib.suppress(*DATABASE_ERRORS):
            async with self._runtime.database.write() as connection:
                await connection.execute(
                    update(Job)
                    .where(Job.id == held.job_id, Job.status == JobStatus.IN_PROGRESS)
                    .values(waiting_on="database", next_attempt_at=None, version=Job.version + 1)
                )

    async def _give_up(self, waiting: _Waiting, error: Exception) -> None:
        """These results can never be recorded: they are paid for once, and their inputs fail with the reason.

        Each batch is offered by itself first, so that no other fails with it. The vectors stay in a file.
        """
        held = self._held
        self._waiting.popleft()
        if len(waiting.parts) > 1:
            if waiting.file is not None:
                waiting.file.remove()
            self._waiting.extendleft(self._to_record([part]) for part in reversed(waiting.parts))
            return
        [part] = waiting.parts
        file = waiting.file or await asyncio.to_thread(self._write, waiting)
        if file is not None:
            file.quarantine()
        self._tell_kept(waiting.parts)
        about = {"job_id": held.job_id, "shard_id": held.shard_id, "inputs": len(part.indexes)}
        if isinstance(error, StorageRefused):
            log.error("paid results could not be recorded: %s", error.message, extra=about)
        else:
            log.error("paid results could not be recorded", exc_info=error, extra=about)
        message = error.message if isinstance(error, StorageRefused) else "the result could not be recorded"
        code = error.code if isinstance(error, EmbedmillError) else EmbedmillError.code
        failed = part._replace(vectors=None, error=InputError(code, message, retryable=True))
        # First with its ledger row, for the provider bills it; without, where it is the row that is refused.
        for attempt in (failed, failed._replace(route=None, tokens=0, cost_usd=Decimal(0))):
            try:
                recorded = await record(self._runtime, held, [attempt])
            except Exception as refused:
                log.warning("the failure of inputs could not be recorded: %s", type(refused).__name__, extra=about)
            else:
                self._note(_Waiting([attempt]), recorded)
                return
        self._stop("results could not be recorded")

    def _next(self) -> _Waiting | None:
        """What is to be recorded next, after all that has landed until now has joined the queue."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._landed:
            self._waiting.append(self._to_record(self._landed))
            self._landed, self._inputs = [], 0
        return self._waiting[0] if self._waiting else None

    def _to_record(self, parts: list[BatchOutcome]) -> _Waiting:
        waiting = _Waiting(parts)
        self.on_recording(parts, waiting.record_id)
        return waiting

    def _tell_kept(self, parts: list[BatchOutcome]) -> None:
        for told in self.on_kept:
            told(parts)

    async def _offer(self, waiting: _Waiting) -> Recorded:
        """Record; spool meanwhile what takes too long. A commit whose answer is lost is simply made again."""
        recording = asyncio.ensure_future(record(self._runtime, self._held, waiting.parts, waiting.record_id))
        try:
            if not (await asyncio.wait({recording}, timeout=SPOOL_AFTER_S))[0]:
                await self._spool()
                if not (await asyncio.wait({recording}, timeout=ANSWER_S))[0]:
                    raise StorageUnavailable("the database does not answer")
            return recording.result()
        finally:
            recording.cancel()

    def _note(self, waiting: _Waiting, recorded: Recorded) -> None:
        if waiting.file is not None:
            waiting.file.remove()
        self._tell_kept(waiting.parts)
        self.recorded += sum(len(part.indexes) for part in waiting.parts)
        self.shard_done = recorded.shard_done
        if not recorded.go_on and not recorded.shard_done:
            self.go_on = False
            self._stop("the job wants no more of this shard")

    async def _spool(self) -> None:
        self._next()
        for waiting in self._waiting:
            if waiting.file is None:
                waiting.file = await asyncio.to_thread(self._write, waiting)
                if waiting.file is not None:
                    self._tell_kept(waiting.parts)

    def _write(self, waiting: _Waiting) -> SpooledFile | None:
        return self._runtime.spool.write(self._held.shard_id, packed(self._held, waiting.parts, waiting.record_id))

    def _leave(self) -> None:
        """This process ends: others carry on with the files."""
        self._next()
        for waiting in self._waiting:
            file = waiting.file or self._write(waiting)
            if file is not None:
                self._tell_kept(waiting.parts)
                file.unlock()
            else:
                inputs = sum(len(part.indexes) for part in waiting.parts)
                log.error("paid results were lost", extra={"job_id": self._held.job_id, "inputs": inputs})

    def _stop(self, reason: str) -> None:
        if self.flight is not None:
            self.flight.stop.cancel(EmbedmillError(reason))
