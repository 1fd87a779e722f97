"""Gauges of database rows, read when metrics are scraped: jobs, shards, leases, workers."""

from __future__ import annotations

import time

from sqlalchemy import func, select

from engine.observability import telemetry
from engine.storage.database import Database
from models.base import db_now
from models.job import FINISHED, OPEN_STATES, Job, JobStatus, Shard, ShardState
from models.worker import WorkerProcess

FRESH_S = 2.0
# Jobs that have ended are counted one by one, and there may be millions of them: less often.
ENDED_REFRESH_EVERY_S = 60.0


class Gauges:
    """Refreshes the gauges at most every two seconds, those of ended jobs every minute, however many scrape."""

    def __init__(self, database: Database, *, worker_seen_s: float) -> None:
        self._database = database
        self._worker_seen_s = worker_seen_s
        self._read_at = -FRESH_S
        self._ended_read_at = -ENDED_REFRESH_EVERY_S

    async def refresh(self) -> None:
        """Raises StorageUnavailable; the old figures then stand."""
        now = time.monotonic()
        if now - self._read_at < FRESH_S:
            return
        statuses = set(JobStatus) if now - self._ended_read_at >= ENDED_REFRESH_EVERY_S else set(JobStatus) - FINISHED
        async with self._database.read() as connection:
            jobs = (
                await connection.execute(
                    select(Job.status, func.count()).where(Job.status.in_(sorted(statuses))).group_by(Job.status)
                )
            ).all()
            shards = (
                await connection.execute(
                    select(Shard.state, func.count()).where(Shard.state.in_(OPEN_STATES)).group_by(Shard.state)
                )
            ).all()
            queued_s = (
                await connection.execute(
                    select(db_now() - func.min(Shard.next_run_at))
                    .join(Job, Job.id == Shard.job_id)
                    .where(Shard.state == ShardState.QUEUED, Job.status == JobStatus.IN_PROGRESS)
                )
            ).scalar_one()
            # A lease that ran out and stays so is the one thing that no other part would notice: the sweep is dead.
            overdue_s = (
                await connection.execute(
                    select(db_now() - func.min(Shard.lease_until)).where(Shard.state == ShardState.RUNNING)
                )
            ).scalar_one()
            expired = (
                await connection.execute(
                    select(func.count())
                    .select_from(Shard)
                    .where(Shard.state == ShardState.RUNNING, Shard.lease_until < db_now())
                )
            ).scalar_one()
            workers = (
                await connection.execute(
                    select(func.count())
                    .select_from(WorkerProcess)
                    .where(WorkerProcess.seen_at > db_now() - self._worker_seen_s)
                )
            ).scalar_one()
        by_status = {row[0]: row[1] for row in jobs}
        for status in statuses:
            telemetry.JOBS.labels(status).set(by_status.get(status, 0))
        by_state = {row[0]: row[1] for row in shards}
        for state in OPEN_STATES:
            telemetry.SHARDS.labels(state).set(by_state.get(state, 0))
        telemetry.OLDEST_QUEUED_SECONDS.set(max(0.0, queued_s or 0.0))
        telemetry.OLDEST_LEASE_SECONDS.set(max(0.0, overdue_s or 0.0))
        telemetry.EXPIRED_LEASES.set(expired)
        telemetry.WORKERS.set(workers)
        self._read_at = now
        if statuses & FINISHED:
            self._ended_read_at = now
