"""Runs of shards, as a worker process makes them."""

from __future__ import annotations

from engine.jobs.execution.worker import Worker
from engine.runtime import Runtime


async def run_shard(runtime: Runtime, shard_id: str, worker: str) -> bool:
    """Run this shard as the worker of this name. False: it could not be claimed."""
    return await Worker(runtime, worker).run(shard_id)


async def run_next_shard(runtime: Runtime, worker: str = "w") -> bool:
    """Run the shard that is next by fair share, as for a message. False: none was due."""
    return await Worker(runtime, worker).run_next()
