"""What a job says while its calls wait for quota: told with what is recorded, and once for each long wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from sqlalchemy import case, update

from engine.jobs.claim import Claim
from engine.runtime import Runtime
from models.base import db_now
from models.errors import StorageUnavailable
from models.job import Job, JobStatus

LOOK_S = 0.5
TELL_AGAIN_S = 10.0


def values(held: Claim, *, done: bool = False) -> dict[Any, Any]:
    """What the job's row is to say about waiting, as far as this shard knows; one that is done waits for nothing."""
    wait_s = None if done else held.waits.held_up_s()
    # What still lands of a paused job does not take away the reason of its pause.
    waiting_on = case((Job.status == JobStatus.PAUSED, Job.waiting_on), else_=None if wait_s is None else "quota")
    return {Job.waiting_on: waiting_on, Job.next_attempt_at: None if wait_s is None else db_now() + wait_s}


async def keep_told(runtime: Runtime, held: Claim) -> None:
    """Until cancelled: where nothing lands because the quota is used up, let the job say so, and until when."""
    told_at = -TELL_AGAIN_S
    while True:
        await asyncio.sleep(LOOK_S)
        now = time.monotonic()
        if held.waits.held_up_s() is None or now - told_at < TELL_AGAIN_S:
            continue
        told_at = now
        with contextlib.suppress(StorageUnavailable):
            async with runtime.database.write() as connection:
                await connection.execute(
                    update(Job)
                    .where(Job.id == held.job_id, Job.status == JobStatus.IN_PROGRESS)
                    .values({**values(held), Job.version: Job.version + 1})
                )
