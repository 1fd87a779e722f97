"""Preemption: a worker on a long shard starts a starved shard beside it and stops starting calls for its own.

All slots may be busy with slow shards, or with shards that wait for a quota. So each worker looks about once a second
for a due shard that no worker claims (engine/jobs/execution/watch.py). One of several workers claims it and runs it at
once. The preempted shard starts no new call, records the results of its calls in flight, and is queued again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.jobs.execution.lease_keeper import ShardStopped
from engine.jobs.scheduling.fair_share import QueuePosition
from models.job import ShardState

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

    code = "preempted"


@dataclass(frozen=True, slots=True)
class Preemptor:
    """The run of a shard that is to preempt another one. It is independent of that one."""

    run: asyncio.Task[bool]
    claimed: asyncio.Event

    async def is_claimed(self) -> bool:
        """Wait until its shard is claimed. False: another worker claimed it first."""
        claiming = asyncio.create_task(self.claimed.wait())
        await asyncio.wait({self.run, claiming}, return_when=asyncio.FIRST_COMPLETED)
        claiming.cancel()
        return self.claimed.is_set()


StartPreemptor = Callable[[str], Preemptor]


def choose_preemptor(
    positions: Mapping[str, QueuePosition], shard_id: str, tokens: int, *, ran_s: float, unsent_tokens: int
) -> str | None:
    """The starved shard that is to be served before this one, which has run for `ran_s`; None: there is none.

    `positions`: of this shard and of all starved ones, in the order of service. `tokens`: what the claim has charged
    for this shard. The comparison leaves out the unsent ones, so that among several workers the one whose project has
    really been served most is preempted.
    """
    current = positions.get(shard_id)
    if current is None or ran_s < MIN_SLICE_FOR_NEW_JOB_S:
        return None
    for candidate in positions.values():
        if candidate.state != ShardState.QUEUED or candidate.job_id == current.job_id:
            continue
        # A job that was not served yet may be ahead by up to one shard.
        margin = -unsent_tokens if candidate.has_started else tokens
        if ran_s >= _min_slice_s(candidate, current) and candidate.precedes(current, within=margin):
            return candidate.shard_id
    return None


def _min_slice_s(candidate: QueuePosition, current: QueuePosition) -> float:
    if not candidate.has_started:
        return MIN_SLICE_FOR_NEW_JOB_S
    return MIN_SLICE_S if candidate.project == current.project else MIN_SLICE_FOR_PROJECT_S
