"""The loop that runs steps beside the shards of a worker process, and what becomes of a step that breaks off.

A process runs a few steps at a time, each of another project: whatever one project sends, others' steps go on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from engine.batches.failure import fail_step
from engine.batches.steps import ClaimedStep, StepParts, StepStopped, claim_step, release_step, renew_step
from engine.jobs.ingest.file_intake import FileChanged, JobEnded
from engine.process.background import ErrorLog, surviving
from engine.storage.database import DATABASE_ERRORS
from models.batch import StepKind
from models.errors import CapacityError, ObjectMissing, RequestError, StorageRefused

log = logging.getLogger("embedmill.steps")

StepFunction = Callable[[StepParts, ClaimedStep], Awaitable[None]]

SLOTS = 4
POLL_EVERY_S = 0.75
# Claims of a step without progress, before its job fails.
MAX_ATTEMPTS = 6
RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 30.0
OUTAGE_PAUSE_S = 5.0
RENEW_RETRY_S = 1.0


# Errors that come again at the next attempt.
PERMANENT = (RequestError, FileChanged, ObjectMissing, StorageRefused)
_SPENT = (
    "The file could not be processed: {attempts} attempts at it failed or ended with the loss of the worker "
    "(step {kind}). Send it again; if that fails too, the log of the workers says why."
)


class StepWorker:
    """Runs the due steps of one worker process until it drains. `functions`: by kind of step."""

    def __init__(
        self,
        parts: StepParts,
        worker: str,
        draining: asyncio.Event,
        functions: Mapping[StepKind, StepFunction],
        *,
        poll_every_s: float = POLL_EVERY_S,
    ) -> None:
        self._parts = parts
        self._worker = worker
        self._draining = draining
        self._functions = functions
        self._poll_every_s = poll_every_s
        self._running: dict[str, asyncio.Task[None]] = {}  # by project
        self._step_done = asyncio.Event()  # a step has succeeded: the next one of its job may be due

    async def run(self) -> None:
        """Claim and run steps until the process drains; those that run have stopped when this returns."""
        errors = ErrorLog("looking for steps of files and batches")
        try:
            while not self._draining.is_set():
                claimed = False
                with errors.round():
                    claimed = len(self._running) < SLOTS and await self._start_next()
                if not claimed:
                    await self._pause(self._poll_every_s * random.uniform(0.7, 1.3))
            await asyncio.gather(*self._running.values())
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def run_next(self) -> bool:
        """Claim a step and run it to its end. False: none is due. Raises StorageUnavailable."""
        step = await claim_step(self._parts.store, self._worker)
        if step is None:
            return False
        await self._run(step)
        return True

    async def _start_next(self) -> bool:
        step = await claim_step(self._parts.store, self._worker, self._running.keys())
        if step is None:
            return False
        task = self._running[step.project] = asyncio.create_task(self._run(step))
        task.add_done_callback(lambda _: self._running.pop(step.project, None))
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait until a step has succeeded, the process drains, or so many seconds have passed."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._draining, self._step_done)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._step_done.clear()

    async def _run(self, claimed: ClaimedStep) -> None:
        """Run a claimed step. Whatever it raises is handled here, and stops no other step."""
        lost = asyncio.Event()
        step = replace(claimed, must_stop=lambda: self._draining.is_set() or lost.is_set())
        renewing = asyncio.create_task(self._renew_until_lost(step, lost))
        try:
            if step.attempts > MAX_ATTEMPTS:
                await self._fail(step, "processing_failed", _SPENT.format(attempts=MAX_ATTEMPTS, kind=step.kind))
                return
            with surviving() as block:
                await self._functions[step.kind](self._parts, step)
            if block.error is None:
                self._step_done.set()
            else:
                await self._settle(step, block.error)
        except asyncio.CancelledError:
            await asyncio.shield(self._release(step, delay_s=0.0, counts=False, error=None))
            raise
        finally:
            renewing.cancel()

    async def _renew_until_lost(self, step: ClaimedStep, lost: asyncio.Event) -> None:
        """Renew the lease until cancelled. Where that fails it runs out: the step's writes are fenced."""
        settings = self._parts.store.settings
        pause_s = settings.heartbeat_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = settings.heartbeat_s
            try:
                if not await renew_step(self._parts.store, step):
                    lost.set()
                    return
            except DATABASE_ERRORS:
                pause_s = min(RENEW_RETRY_S, settings.heartbeat_s)

    async def _settle(self, step: ClaimedStep, error: Exception) -> None:
        """What becomes of a step that broke off with `error`."""
        fields = {"job_id": step.job_id, "kind": step.kind}
        if isinstance(error, StepStopped | JobEnded):
            await self._release(step, delay_s=0.0, counts=False, error=None)
        elif isinstance(error, CapacityError):  # the database or the object store is away: outwaited
            log.warning("a step waits: %s", error.message, extra=fields)
            await self._release(step, delay_s=OUTAGE_PAUSE_S * random.uniform(0.5, 1.5), counts=False, error=str(error))
        elif isinstance(error, PERMANENT):
            await self._fail(step, error.code, error.message)
        else:
            log.error("a step broke off, and is tried again", exc_info=error, extra=fields)
            delay_s = min(MAX_RETRY_AFTER_S, RETRY_AFTER_S * 2.0 ** (step.attempts - 1))
            await self._release(step, delay_s=delay_s, counts=True, error=f"{type(error).__name__}: {error}")

    async def _fail(self, step: ClaimedStep, code: str, message: str) -> None:
        with surviving() as block:
            await fail_step(self._parts, step, code, message)
        if block.error is None:
            return
        if isinstance(block.error, StepStopped):  # its job has ended meanwhile, or another worker has it
            await self._release(step, delay_s=0.0, counts=False, error=None)
            return
        log.error("a step could not be failed, and is tried again", exc_info=block.error, extra={"job_id": step.job_id})
        await self._release(step, delay_s=OUTAGE_PAUSE_S, counts=True, error=str(block.error))

    async def _release(self, step: ClaimedStep, *, delay_s: float, counts: bool, error: str | None) -> None:
        """Release a step. While the database is away its lease runs out instead."""
        try:
            await release_step(self._parts.store, step, delay_s=delay_s, counts_as_attempt=counts, error=error)
        except DATABASE_ERRORS:
            log.warning("a step is left to its lease", extra={"job_id": step.job_id})
