"""Answer: a ring says only that there is work. Who hears it takes the shard whose turn it is by now.

Between ring and claim, a message may have waited for minutes behind slow shards, and a job may have come that has had
nothing yet.
"""

from __future__ import annotations

from engine.jobs.execution.worker import run_shard
from engine.jobs.leasing import claim as claims
from engine.jobs.scheduling import fair_share
from engine.runtime import Runtime
from models.errors import StorageUnavailable
from models.job import ShardState


async def answer(runtime: Runtime, rung: str, worker: str) -> None:
    """Run the rung shard, or another whose turn comes before its. A ring for what is not to be run is for nothing."""
    chosen = rung
    if not runtime.draining.is_set():
        try:
            chosen = await _whose_turn(runtime, rung)
        except StorageUnavailable:
            return  # the sweep rings again
    if chosen == rung or not await run_shard(runtime, chosen, worker):
        await run_shard(runtime, rung, worker)


async def _whose_turn(runtime: Runtime, rung: str) -> str:
    """The shard to run for this ring. As many stay rung as there are messages: a queued one changes places with it."""
    async with runtime.database.read() as connection:
        first = await fair_share.first_waiting(connection, runtime.settings.shard_attempts)
        if first is None or first == rung:
            return rung
        places = await fair_share.places(connection, [first, rung])
    if not {first, rung} <= places.keys() or not places[first].before(places[rung]):
        return rung
    if places[rung].state not in (ShardState.QUEUED, ShardState.ANNOUNCED):
        return rung  # an old message; there is another for the shard that is next
    if places[first].state == ShardState.QUEUED:
        await claims.requeue_unclaimed(runtime, rung)
    return first
