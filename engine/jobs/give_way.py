"""Give way: a worker on a long shard looks about, and lets in a job that has waited for its turn.

All slots may be busy with slow shards, or with shards that wait for a quota. So each worker looks about twice a second
for a due shard that nobody takes. It claims that shard, which of several workers one can do, and runs it at once beside
its own, which starts no new call from then on, keeps what lands, and goes back to the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from engine.jobs import turns
from engine.jobs.claim import Claim
from engine.jobs.lease import ToldToStop
from engine.runtime import Runtime
from models.errors import StorageUnavailable

LOOK_EVERY_S = 0.5
# A free slot takes a shard within milliseconds of its ring: what has waited so long waits for a slot.
WAITED_S = 1.0
# How long a worker stays on a shard before it gives way: to a job that has had nothing yet, and to any other.
SLICE_FOR_NEW_S = 1.0
SLICE_S = 10.0
# A guest gets so much time at the least, however little its host has left.
LEAST_VISIT_S = 5.0


class GaveWay(ToldToStop):
    """A job that has had less gets this worker first."""

    code = "gave_way"


Receive = Callable[[str, Callable[[], None]], "asyncio.Task[bool]"]


async def give_way(runtime: Runtime, held: Claim, until: float, receive: Receive) -> None:
    """Return once a guest has come in. `until`, on time.monotonic(): when the worker's time is over.

    `receive` runs a shard and calls back when it is claimed; what it has begun goes on, whatever becomes of us.
    """
    started = time.monotonic()
    while time.monotonic() < until:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            waiting = await _look(runtime, held, time.monotonic() - started)
        except StorageUnavailable:
            continue
        if waiting is not None:
            came_in = asyncio.Event()
            guest = receive(waiting, came_in.set)
            coming = asyncio.create_task(came_in.wait())
            await asyncio.wait({guest, coming}, return_when=asyncio.FIRST_COMPLETED)
            if came_in.is_set():
                return
            coming.cancel()  # another worker was first
    await asyncio.Event().wait()


async def _look(runtime: Runtime, held: Claim, ran_s: float) -> str | None:
    if ran_s < SLICE_FOR_NEW_S:
        return None
    async with runtime.database.read() as connection:
        waiting = await turns.waiting_long(connection, runtime.settings.shard_attempts, WAITED_S)
        if not waiting:
            return None
        places = await turns.places(connection, [held.shard_id, *waiting])
    ours = places.get(held.shard_id)
    if ours is None:
        return None
    for shard_id in waiting:
        place = places.get(shard_id)
        if place is None or place.job_id == held.job_id:
            continue
        # Turns are a shard long. A job that has had nothing yet need not be exact about it.
        margin = 0 if place.has_started else held.tokens
        if ran_s >= (SLICE_S if place.has_started else SLICE_FOR_NEW_S) and place.before(ours, within=margin):
            return shard_id
    return None
