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


async def handle_message(runtime: Runtime, announced_id: str, worker: str) -> None:
    """Run the rung shard, or another whose turn comes before its. A ring for what is not to be run is for nothing."""
    shard_id = announced_id
    if not runtime.draining.is_set():
        try:
            shard_id = await _choose_shard(runtime, announced_id)
        except StorageUnavailable:
            return  # the sweep rings again
    if shard_id == announced_id or not await run_shard(runtime, shard_id, worker):
        await run_shard(runtime, announced_id, worker)


async def _choose_shard(runtime: Runtime, announced_id: str) -> str:
    """The shard to run for this ring. As many stay rung as there are messages: a queued one changes places with it."""
    async with runtime.database.read() as connection:
        next_id = await fair_share.next_shard(connection, runtime.settings.shard_attempts)
        if next_id is None or next_id == announced_id:
            return announced_id
        positions = await fair_share.positions(connection, [next_id, announced_id])
    if not {next_id, announced_id} <= positions.keys() or not positions[next_id].precedes(positions[announced_id]):
        return announced_id
    if positions[announced_id].state not in (ShardState.QUEUED, ShardState.ANNOUNCED):
        return announced_id  # an old message; there is another for the shard that is next
    if positions[next_id].state == ShardState.QUEUED:
        await claims.requeue_unclaimed(runtime, announced_id)
    return next_id
