"""Overdue shards: due, but not claimed in time, because no message for them arrives. Idle workers claim them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from engine.jobs.scheduling import fair_share
from engine.jobs.scheduling.dispatch import reserve_next
from engine.runtime import Runtime
from models.base import db_now
from models.job import Shard, ShardState


@dataclass(frozen=True, slots=True)
class OverdueShard:
    """A due shard that no worker has claimed in time. `announced`: its message should have arrived long ago."""

    shard_id: str
    announced: bool


async def find_overdue_shard(runtime: Runtime) -> OverdueShard | None:
    """A shard that has waited too long for its message, in the order of dispatch. Raises StorageUnavailable."""
    # Shorter than the sweep's limit: the sweep announces the shard again, which resets `announced_at`.
    waited_s = min(runtime.settings.claim_unannounced_after_s, runtime.settings.reannounce_after_s / 2)
    async with runtime.database.read() as connection:
        # Announced shards were selected by fair share already, so the oldest one is next.
        announced = (
            await connection.execute(
                select(Shard.id)
                .where(Shard.state == ShardState.ANNOUNCED, Shard.announced_at < db_now() - waited_s)
                .order_by(Shard.announced_at, Shard.id)
                .limit(1)
            )
        ).scalar_one_or_none()
        if announced is not None:
            return OverdueShard(announced, announced=True)
        if not await fair_share.starved_shards(connection, runtime.settings.shard_attempts, waited_s):
            return None
    # They are not announced only while the broker takes no message or no process dispatches.
    reserved = await reserve_next(runtime)
    return None if reserved is None else OverdueShard(reserved, announced=False)
