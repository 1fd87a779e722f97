"""Wait report: `waiting_on` and `next_attempt_at` of a job whose calls wait for quota or for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from sqlalchemy import case, update

from engine.embedding.hang_detector import PROBE_EVERY_S
from engine.jobs.leasing.claim import ClaimedShard
from engine.limiter.call_waits import CONCURRENCY, UnansweredCall
from engine.routing.outage_causes import cause_of
from engine.storage.database import DATABASE_ERRORS, Database
from models.base import db_now
from models.errors import UpstreamError, UpstreamTimeout
from models.job import Job, JobStatus

POLL_EVERY_S = 0.5
REPORT_AGAIN_S = 10.0
PROVIDER = "provider"


def waiting_columns(shard: ClaimedShard) -> dict[Any, Any]:
    """The columns of the job about waiting, by the calls of this shard. Its other shards wait for the same."""
    if (late := shard.waits.late_call()) is not None:
        return _without_answer(shard, late)
    wait_s = shard.waits.blocked_for_s()
    if wait_s is not None and shard.waits.cause is not None:
        return _alone(shard, shard.waits.cause, wait_s)
    reason = shard.waits.shown = None if wait_s is None else shard.waits.reason
    next_attempt_at = None if wait_s is None or reason == CONCURRENCY else db_now() + wait_s
    return {Job.waiting_on: _unless_paused(reason), Job.next_attempt_at: next_attempt_at, Job.outage: None}


def _without_answer(shard: ClaimedShard, late: UnansweredCall) -> dict[Any, Any]:
    shard.waits.shown = PROVIDER
    error = UpstreamTimeout(f"calls have had no answer for {late.age_s:.0f} s, far longer than usual")
    return {
        Job.waiting_on: _unless_paused(PROVIDER),
        Job.next_attempt_at: db_now() + PROBE_EVERY_S,
        Job.outage: cause_of(late.route.account, error).waiting(late.since),
    }


def _alone(shard: ClaimedShard, cause: UpstreamError, wait_s: float) -> dict[Any, Any]:
    """Columns for a provider that refuses the calls of this job only."""
    shard.waits.shown = PROVIDER
    return {
        Job.waiting_on: _unless_paused(PROVIDER),
        Job.next_attempt_at: db_now() + wait_s,
        Job.outage: cause_of(cause.account, cause).waiting(shard.waits.cause_since),
    }


def _unless_paused(reason: str | None) -> Any:
    """Late results of a paused job do not overwrite the reason of its pause."""
    return case((Job.status == JobStatus.PAUSED, Job.waiting_on), else_=reason)


def is_current(shown: str | None, reason: str | None, age_s: float, *, is_late: bool) -> bool:
    """True when the job shows this reason, from a report that is `age_s` old and still recent enough."""
    return shown == reason and age_s < (PROBE_EVERY_S if is_late else REPORT_AGAIN_S)


async def report_waits(database: Database, shard: ClaimedShard) -> None:
    """Update the job while no results arrive for lack of quota or answers. Runs until cancelled."""
    reported_at = -REPORT_AGAIN_S
    while True:
        await asyncio.sleep(POLL_EVERY_S)
        now = time.monotonic()
        is_late = shard.waits.late_call() is not None
        reason = PROVIDER if is_late or shard.waits.cause is not None else shard.waits.reason
        is_waiting = is_late or shard.waits.blocked_for_s() is not None
        if not is_waiting or is_current(shard.waits.shown, reason, now - reported_at, is_late=is_late):
            continue
        reported_at = now
        with contextlib.suppress(*DATABASE_ERRORS):
            async with database.write() as connection:
                await connection.execute(
                    update(Job)
                    .where(Job.id == shard.job_id, Job.status == JobStatus.IN_PROGRESS)
                    .values({**waiting_columns(shard), Job.version: Job.version + 1})
                )
