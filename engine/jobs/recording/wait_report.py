"""What a job says while its calls wait for quota or an answer: told with what is recorded, and for each long wait."""

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
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from models.base import db_now
from models.errors import UpstreamError, UpstreamTimeout
from models.job import Job, JobStatus

LOOK_S = 0.5
TELL_AGAIN_S = 10.0
PROVIDER = "provider"


def values(held: ClaimedShard) -> dict[Any, Any]:
    """What the job's row is to say about waiting, as far as this shard knows. Its other shards wait for the same."""
    if (late := held.waits.late_call()) is not None:
        return _without_answer(held, late)
    wait_s = held.waits.blocked_for_s()
    if wait_s is not None and held.waits.cause is not None:
        return _alone(held, held.waits.cause, wait_s)
    reason = held.waits.shown = None if wait_s is None else held.waits.reason
    next_attempt_at = None if wait_s is None or reason == CONCURRENCY else db_now() + wait_s
    return {Job.waiting_on: _unless_paused(reason), Job.next_attempt_at: next_attempt_at, Job.waiting: None}


def _without_answer(held: ClaimedShard, late: UnansweredCall) -> dict[Any, Any]:
    held.waits.shown = PROVIDER
    error = UpstreamTimeout(f"calls have had no answer for {late.age_s:.0f} s, far longer than usual")
    return {
        Job.waiting_on: _unless_paused(PROVIDER),
        Job.next_attempt_at: db_now() + PROBE_EVERY_S,
        Job.waiting: cause_of(late.route.account, error).waiting(late.since),
    }


def _alone(held: ClaimedShard, cause: UpstreamError, wait_s: float) -> dict[Any, Any]:
    """Calls of this job are refused, and others are not."""
    held.waits.shown = PROVIDER
    return {
        Job.waiting_on: _unless_paused(PROVIDER),
        Job.next_attempt_at: db_now() + wait_s,
        Job.waiting: cause_of(cause.account, cause).waiting(held.waits.cause_since),
    }


def _unless_paused(reason: str | None) -> Any:
    """What still lands of a paused job does not take away the reason of its pause."""
    return case((Job.status == JobStatus.PAUSED, Job.waiting_on), else_=reason)


async def report_waits(runtime: Runtime, held: ClaimedShard) -> None:
    """Until cancelled: where nothing lands for want of quota, or of answers, let the job say so, and until when."""
    told_at = -TELL_AGAIN_S
    while True:
        await asyncio.sleep(LOOK_S)
        now = time.monotonic()
        is_late = held.waits.late_call() is not None
        reason = PROVIDER if is_late or held.waits.cause is not None else held.waits.reason
        is_shown = held.waits.shown == reason and now - told_at < (PROBE_EVERY_S if is_late else TELL_AGAIN_S)
        if is_shown or not (is_late or held.waits.blocked_for_s() is not None):
            continue
        told_at = now
        with contextlib.suppress(*DATABASE_ERRORS):
            async with runtime.database.write() as connection:
                await connection.execute(
                    update(Job)
                    .where(Job.id == held.job_id, Job.status == JobStatus.IN_PROGRESS)
                    .values({**values(held), Job.version: Job.version + 1})
                )
