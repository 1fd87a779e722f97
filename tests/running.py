"""What worker and scheduler processes do, on the runtime of a test."""

from __future__ import annotations

from engine.jobs.composition import dispatcher_of, sweep_of
from engine.jobs.execution.worker import Worker
from engine.runtime import Runtime


async def run_shard(runtime: Runtime, shard_id: str, worker: str) -> bool:
    """Run this shard as the worker of this name. False: it could not be claimed."""
    return await Worker(runtime, worker).run(shard_id)


async def run_next_shard(runtime: Runtime, worker: str = "w") -> bool:
    """Run the shard that is next by fair share, as for a message. False: none was due."""
    return await Worker(runtime, worker).run_next()


async def dispatch(runtime: Runtime) -> int:
    """Top up the messages in the queue. Returns how many should wait there."""
    return await dispatcher_of(runtime).dispatch()


async def sweep(runtime: Runtime) -> None:
    """One round of the sweep."""
    await sweep_of(runtime).run()
