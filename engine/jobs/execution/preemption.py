"""Give way: a worker on a long shard looks about, and lets in a job that has waited for its turn.

All slots may be busy with slow shards, or with shards that wait for a quota. So each worker looks about twice a second
for a due shard that nobody takes. It claims that shard, which of several workers one can do, and runs it at once beside
its own, which starts no new call from then on, keeps what lands, and goes back to the queue.
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
# A free slot takes a shard within milliseconds of its ring: what has waited so long waits for a slot.
STARVED_AFTER_S = 0.5
# How long a worker stays on a shard before it gives way: to a job that has had nothing yet, or to another project; and
# to another job of its own project. Projects change places every second or two, so that each has its share of any
# minute (tests/integration/test_fair_minutes.py).
MIN_SLICE_FOR_NEW_JOB_S = 1.0
MIN_SLICE_FOR_PROJECT_S = 1.0
MIN_SLICE_S = 10.0
# A guest gets so much time at the least, however little its host has left.
MIN_PREEMPTOR_S = 5.0


class ShardPreempted(ShardStopped):
    """A job that has had less gets this worker first."""

    code = "gave_way"


StartShard = Callable[[str, Callable[[], None]], "asyncio.Task[bool]"]


async def watch_for_preemption(
    runtime: Runtime, shard: ClaimedShard, until: float, start_shard: StartShard, unsent_tokens: Callable[[], int]
) -> None:
    """Return once a guest has come in. `until`, on time.monotonic(): when the worker's time is over.

    `receive` runs a shard and calls back when it is claimed; what it has begun goes on, whatever becomes of us.
    `unsent_tokens`: those of the shard for which no call has been made yet.
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
    """A shard whose turn comes before this one's, after so long. Raises StorageUnavailable.

    The claim has charged the whole shard. Of several workers that see the same shard wait, the one whose project has
    really had more must give way: what is not sent yet counts for nothing.
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
        # A job that has had nothing yet need not be exact about it.
        margin = -unsent_tokens if candidate.has_started else shard.tokens
        if ran_s >= _min_slice_s(candidate, current) and candidate.precedes(current, within=margin):
            return shard_id
    return None


def _min_slice_s(candidate: fair_share.QueuePosition, current: fair_share.QueuePosition) -> float:
    if not candidate.has_started:
        return MIN_SLICE_FOR_NEW_JOB_S
    return MIN_SLICE_S if candidate.project == current.project else MIN_SLICE_FOR_PROJECT_S
