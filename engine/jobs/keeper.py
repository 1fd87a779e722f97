"""Keeping: results go into the database as they land, at least once a second and once per thousand inputs.

A result was paid for. While the database is away it is held here and offered again and again, and, once that has lasted
for two seconds, it lies in the spool too, where it outlives this process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine import failpoints
from engine.embedding import Flight
from engine.jobs.claim import Claim
from engine.jobs.record import Recorded, record
from engine.jobs.replay import packed
from engine.runtime import Runtime
from engine.spool import SpooledFile
from models.embedding import Landed
from models.errors import EmbedmillError, StorageUnavailable

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

    parts: list[Landed]
    file: SpooledFile | None = None


class Keeper:
    """Takes what lands and records it from a task of its own, beside the calls that are still under way."""

    def __init__(self, runtime: Runtime, held: Claim) -> None:
        self._runtime = runtime
        self._held = held
        self._landed: list[Landed] = []
        self._inputs = 0
        self._waiting: deque[_Waiting] = deque()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._task = asyncio.create_task(self._run())
        self.flight: Flight | None = None
        # Told of results that are safe: in the database, or in the spool.
        self.on_kept: Callable[[list[Landed]], None] = lambda parts: None
        self.recorded = 0
        self.shard_done = False
        self.go_on = True

    def take(self, landed: Landed) -> None:
        failpoints.hit("after_upstream_before_commit")
        self._landed.append(landed)
        self._inputs += len(landed.indexes)
        if self._inputs >= RECORD_INPUTS:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECORD_EVERY_S, self._due.set)

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

    async def _record_all(self) -> None:
        away_since: float | None = None
        pauses = iter(PAUSE_S)
        while self._next() is not None:
            waiting = self._waiting[0]
            try:
                recorded = await self._offer(waiting)
            except StorageUnavailable:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since >= SPOOL_AFTER_S:
                    await self._spool()
                await asyncio.sleep(next(pauses, PAUSE_S[-1]))
                continue
            except Exception:
                # A fault of ours must not hang the shard: it is logged whole, and the shard goes back.
                log.exception("results could not be recorded", extra={"job_id": self._held.job_id})
                if waiting.file is not None:
                    waiting.file.set_aside()
                self._stop("results could not be recorded")
            else:
                self._note(waiting, recorded)
            self._waiting.popleft()
            away_since, pauses = None, iter(PAUSE_S)

    def _next(self) -> _Waiting | None:
        """What is to be recorded next, after all that has landed until now has joined the queue."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._landed:
            self._waiting.append(_Waiting(self._landed))
            self._landed, self._inputs = [], 0
        return self._waiting[0] if self._waiting else None

    async def _offer(self, waiting: _Waiting) -> Recorded:
        """Record; spool meanwhile what takes too long. A commit whose answer is lost is simply made again."""
        recording = asyncio.ensure_future(record(self._runtime, self._held, waiting.parts))
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
        self.on_kept(waiting.parts)
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
                    self.on_kept(waiting.parts)

    def _write(self, waiting: _Waiting) -> SpooledFile | None:
        return self._runtime.spool.write(self._held.shard_id, packed(self._held, waiting.parts))

    def _leave(self) -> None:
        """This process ends: others carry on with the files."""
        self._next()
        for waiting in self._waiting:
            file = waiting.file or self._write(waiting)
            if file is not None:
                self.on_kept(waiting.parts)
                file.let_go()
            else:
                inputs = sum(len(part.indexes) for part in waiting.parts)
                log.error("paid results were lost", extra={"job_id": self._held.job_id, "inputs": inputs})

    def _stop(self, reason: str) -> None:
        if self.flight is not None:
            self.flight.stop.give(EmbedmillError(reason))
