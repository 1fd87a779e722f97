"""Preemption: a worker on a long shard starts a starved shard beside it and stops starting calls for its own.

All slots may be busy with slow shards, or with shards that wait for a quota. So each worker looks twice a second for a
due shard that no worker claims. One of several workers claims it and runs it at once. The preempted shard starts no
new call, records the results of its calls in flight, and is queued again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from engine.jobs.execution.lease_keeper import ShardStopped
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.scheduling import fair_share
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS

POLL_EVERY_S = 0.5
# A free slot claims a shard within milliseconds of its message: a shard that is due for longer waits for a slot.
STARVED_AFTER_S = 0.5
# How long a shard runs before it can be preempted: by a job that was not served yet, by another project, and by another
# job of its own project. Projects alternate every second or two, so that each gets its share of any minute
# (tests/integration/test_fair_minutes.py).
MIN_SLICE_FOR_NEW_JOB_S = 1.0
MIN_SLICE_FOR_PROJECT_S = 1.0
MIN_SLICE_S = 10.0
# A preempting shard gets at least this time, even if the worker's time budget is nearly used up.
MIN_PREEMPTOR_S = 5.0


class ShardPreempted(ShardStopped):
    """Another job, which has been served less, gets this worker."""

    code = "gave_way"


StartShard = Callable[[str, Callable[[], None]], "asyncio.Task[bool]"]


async def watch_for_preemption(
    runtime: Runtime, shard: ClaimedShard, until: float, start_shard: StartShard, unsent_tokens: Callable[[], int]
) -> None:
    """Return once a preempting shard was claimed. `until`, on time.monotonic(): end of the worker's time budget.

    `start_shard` starts the run of a shard, and calls its second argument once the shard is claimed. The run is
    independent of this one. `unsent_tokens`: tokens of this shard for which no call was made yet.
    """
    started = time.monotonic()
    while time.monotonic() < until:
        await asyncio.sleep(POLL_EVERY_S)
        try:
            preemptor_id = await find_preemptor(runtime, shard, time.monotonic() - started, unsent_tokens())
        except DATABASE_ERRORS:
            continue
        if preemptor_id is not None:
            claimed = asyncio.Event()
            preemptor = start_shard(preemptor_id, claimed.set)
            claiming = asyncio.create_task(claimed.wait())
            await asyncio.wait({preemptor, claiming}, return_when=asyncio.FIRST_COMPLETED)
            if claimed.is_set():
                return
            claiming.cancel()  # another worker was first
    await asyncio.Event().wait()


async def find_preemptor(runtime: Runtime, shard: ClaimedShard, ran_s: float, unsent_tokens: int) -> str | None:
    """A starved shard that is to be served before this one, which has run for `ran_s`. Raises StorageUnavailable.

    The claim has charged all tokens of this shard. The comparison leaves out the unsent ones, so that among several
    workers the one whose project has really been served most is preempted.
    """
    if ran_s < MIN_SLICE_FOR_NEW_JOB_S:
        return None
    async with runtime.database.read() as connection:
        starved = await fair_share.starved_shards(connection, runtime.settings.shard_attempts, STARVED_AFTER_S)
        if not starved:
            return None
        positions = await fair_share.positions(connection, [shard.shard_id, *starved])
    current = positions.get(shard.shard_id)
    if current is None:
        return None
    for shard_id in starved:
        candidate = positions.get(shard_id)
        if candidate is None or candidate.job_id == shard.job_id:
            continue
        # A job that was not served yet may be ahead by up to one shard.
        margin = -unsent_tokens if candidate.has_started else shard.tokens
        if ran_s >= _min_slice_s(candidate, current) and candidate.precedes(current, within=margin):
            return shard_id
    return None


def _min_slice_s(candidate: fair_share.QueuePosition, current: fair_share.QueuePosition) -> float:
    if not candidate.has_started:
        return MIN_SLICE_FOR_NEW_JOB_S
    return MIN_SLICE_S if candidate.project == current.project else MIN_SLICE_FOR_PROJECT_S
