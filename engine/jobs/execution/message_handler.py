"""Message handler: a message only says that there is work. The worker that receives it runs the next shard.

A message may wait for minutes behind slow shards, and a job that was not served yet may arrive meanwhile.
"""

from __future__ import annotations

from engine.jobs.execution.worker import run_shard
from engine.jobs.leasing import claim as claims
from engine.jobs.scheduling import fair_share
from engine.runtime import Runtime
from models.errors import StorageUnavailable
from models.job import ShardState


async def handle_message(runtime: Runtime, announced_id: str, worker: str) -> None:
    """Run the announced shard, or one that is to be served before it. Does nothing where neither can be claimed."""
    shard_id = announced_id
    if not runtime.draining.is_set():
        try:
            shard_id = await _choose_shard(runtime, announced_id)
        except StorageUnavailable:
            return  # the sweep announces the shard again
    if shard_id == announced_id or not await run_shard(runtime, shard_id, worker):
        await run_shard(runtime, announced_id, worker)


async def _choose_shard(runtime: Runtime, announced_id: str) -> str:
    """The shard to run for this message. Where it was not announced, the announced one is queued in its place, so that
    there are as many announced shards as messages."""
    async with runtime.database.read() as connection:
        next_id = await fair_share.next_shard(connection, runtime.settings.shard_attempts)
        if next_id is None or next_id == announced_id:
            return announced_id
        positions = await fair_share.positions(connection, [next_id, announced_id])
    if not {next_id, announced_id} <= positions.keys() or not positions[next_id].precedes(positions[announced_id]):
        return announced_id
    if positions[announced_id].state not in (ShardState.QUEUED, ShardState.ANNOUNCED):
        return announced_id  # an outdated message; the next shard has its own
    if positions[next_id].state == ShardState.QUEUED:
        await claims.requeue_unclaimed(runtime, announced_id)
    return next_id
