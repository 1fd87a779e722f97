"""Long polls: one task per process reads the watched jobs for all waiting requests.

Each watched job is read at growing intervals, and all requests that wait for it get the new row. Jobs that are due at
the same time are read by one query.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from sqlalchemy import Row

from engine.job_store import JobStore
from engine.jobs.allowed_actions import job_not_found
from engine.jobs.reading import job_rows
from engine.process.background import logging_errors
from models.errors import StorageUnavailable
from models.job import FINISHED

log = logging.getLogger("embedmill.jobs")

PAUSES_S = (0.05, 0.1, 0.2, 0.3, 0.5)
DISCONNECT_POLL_S = 1.0
JOBS_PER_QUERY = 200


class _Watch:
    """A job that at least one request waits for."""

    def __init__(self) -> None:
        self.waiters = 0
        self.pauses = iter(PAUSES_S)
        self.due_at = time.monotonic() + PAUSES_S[0]
        self.update: asyncio.Future[Row[Any] | None] = asyncio.get_running_loop().create_future()

    def publish(self, row: Row[Any] | None) -> None:
        """Pass a new row to all waiting requests; None: the job was deleted."""
        watched, self.update = self.update, asyncio.get_running_loop().create_future()
        watched.set_result(row)


class JobWatches:
    """The long polls of one process."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._watches: dict[str, _Watch] = {}
        self._reader: asyncio.Task[None] | None = None
        self._is_stopping = False

    async def wait_for_change(
        self,
        project: str,
        job_id: str,
        *,
        wait_s: float,
        seen_etag: str | None,
        client_disconnected: Callable[[], Awaitable[bool]],
    ) -> Row[Any]:
        """The job's row once it differs from what the caller has seen, has finished, or wait_s is over.

        `client_disconnected` tells whether the caller has gone; the wait ends then. Raises JobNotFound.
        """
        deadline = time.monotonic() + wait_s
        row = await job_rows.get_job(self._store, project, job_id)
        known_etag = job_rows.etag(row) if seen_etag is None else seen_etag
        if not _is_same(row, known_etag) or wait_s <= 0:
            return row
        job_id = row.id  # the caller may have sent the id of its batch
        watch = self._watches.setdefault(job_id, _Watch())
        watch.waiters += 1
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_repeatedly())
        try:
            while _is_same(row, known_etag) and not self._is_stopping:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0 or await client_disconnected():
                    break
                done, _ = await asyncio.wait({watch.update}, timeout=min(remaining_s, DISCONNECT_POLL_S))
                if done:
                    new_row = done.pop().result()
                    if new_row is None:
                        raise job_not_found()
                    row = new_row
            return row
        finally:
            watch.waiters -= 1
            if not watch.waiters:
                self._watches.pop(job_id, None)

    def stop(self) -> None:
        """End all waits with the current row, because the process stops."""
        self._is_stopping = True

    async def close(self) -> None:
        """Stop, and end the reading task."""
        self.stop()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read_repeatedly(self) -> None:
        while self._watches:
            now = time.monotonic()
            due = [job_id for job_id, watch in self._watches.items() if watch.due_at <= now]
            for low in range(0, len(due), JOBS_PER_QUERY):
                # Repeated after the next interval; each request has a deadline of its own.
                with suppress(StorageUnavailable), logging_errors("the jobs of long polls could not be read"):
                    await self._read(due[low : low + JOBS_PER_QUERY])
            next_due_at = min((watch.due_at for watch in self._watches.values()), default=now)
            await asyncio.sleep(min(max(next_due_at - time.monotonic(), PAUSES_S[0]), PAUSES_S[-1]))

    async def _read(self, job_ids: list[str]) -> None:
        now = time.monotonic()
        for job_id in job_ids:
            if (watch := self._watches.get(job_id)) is not None:
                watch.due_at = now + next(watch.pauses, PAUSES_S[-1])
        rows: Iterable[Row[Any]] = await job_rows.get_jobs(self._store, job_ids)
        by_id = {row.id: row for row in rows}
        for job_id in job_ids:
            if (watch := self._watches.get(job_id)) is not None:
                watch.publish(by_id.get(job_id))


def _is_same(row: Row[Any], known_etag: str) -> bool:
    return row.status not in FINISHED and job_rows.etag(row) == known_etag
