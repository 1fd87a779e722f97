"""Claim: one worker at a time holds a shard, by a lease on the database's clock and a fence that grows each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from sqlalchemy import and_, or_, select, update

from engine.jobs.leasing import duplicate_codec
from engine.jobs.scheduling import fair_share
from engine.limiter.call_waits import CallWaits
from engine.runtime import Runtime
from models.base import db_now
from models.embedding import Call, Input, Options
from models.job import OPEN_STATES, Job, JobStatus, Shard, ShardInputs, ShardState

Bitmap = npt.NDArray[np.bool_]
_INPUTS = msgspec.msgpack.Decoder(list[str | list[int] | None])


@dataclass(frozen=True, slots=True)
class ClaimedShard:
    """A shard in hand, with what its job says about it."""

    shard_id: str
    job_id: str
    project: str
    key_id: str
    alias: str
    width: int
    options: Options
    first_index: int
    count: int
    attempt: int
    fence: int
    outcome_bits: Bitmap
    inputs: list[Input | None]
    tokens: int  # estimated, of what was open when it was claimed: what its turn was charged for
    duplicates: Mapping[int, int]  # position in the shard: the job's index of the first of its kind
    max_cost_usd: Decimal | None = None  # of the job, when the shard was claimed
    calls: list[Call] = field(default_factory=list)  # made for it since
    waits: CallWaits = field(default_factory=CallWaits, compare=False)  # of those calls, for quota

    def index(self, position: int) -> int:
        """A position in the shard as an index of the job."""
        return self.first_index + position

    def open_positions(self) -> list[int]:
        """Positions in the shard that have no outcome yet and must be embedded for one."""
        return [i for i in range(self.count) if not self.outcome_bits[i] and self.inputs[i] is not None]

    def open_duplicates(self) -> dict[int, int]:
        """Twins that have no outcome yet: position in the shard, and the job's index of the first."""
        return {position: first for position, first in self.duplicates.items() if not self.outcome_bits[position]}


async def claim(runtime: Runtime, shard_id: str, worker: str) -> ClaimedShard | None:
    """Take the shard; None when there is nothing to do about it: done, cancelled, deleted, not due, in other hands."""
    running_job = select(Job.id).where(
        Job.id == Shard.job_id, Job.status == JobStatus.IN_PROGRESS, Job.deleted_at.is_(None)
    )
    async with runtime.database.write() as connection:
        claimed = (
            await connection.execute(
                update(Shard)
                .where(
                    Shard.id == shard_id,
                    or_(
                        Shard.state.in_((ShardState.QUEUED, ShardState.ANNOUNCED)),
                        and_(Shard.state == ShardState.RUNNING, Shard.lease_until < db_now()),
                    ),
                    Shard.next_run_at <= db_now(),
                    Shard.blocked_by.is_(None),
                    running_job.exists(),
                )
                .values(
                    state=ShardState.RUNNING,
                    attempt=Shard.attempt + 1,
                    fence=Shard.fence + 1,
                    lease_until=db_now() + runtime.settings.lease_s,
                    worker=worker,
                    announced_at=None,
                )
                .returning(Shard.job_id, Shard.attempt, Shard.fence, Shard.outcome_bitmap, Shard.count, Shard.tokens)
            )
        ).one_or_none()
        if claimed is None:
            return None
        tokens = remaining_tokens(claimed)
        await fair_share.advance(runtime.database, connection, claimed.job_id, tokens)
    async with runtime.database.read() as connection:
        row = (
            await connection.execute(
                select(
                    Job.id,
                    Job.project,
                    Job.key_id,
                    Job.alias,
                    Job.dimensions,
                    Job.options,
                    Shard.first_index,
                    Shard.count.label("size"),
                    ShardInputs.inputs,
                    ShardInputs.duplicates,
                    Job.max_cost_usd,
                )
                .join(Shard, Shard.job_id == Job.id)
                .join(ShardInputs, ShardInputs.shard_id == Shard.id)
                .where(Shard.id == shard_id)
            )
        ).one_or_none()
    if row is None:  # deleted between the two statements
        return None
    return ClaimedShard(
        shard_id=shard_id,
        job_id=row.id,
        project=row.project,
        key_id=row.key_id,
        alias=row.alias,
        width=row.dimensions,
        options=_options(row.options),
        first_index=row.first_index,
        count=row.size,
        attempt=claimed.attempt,
        fence=claimed.fence,
        outcome_bits=decode_bitmap(claimed.outcome_bitmap, row.size),
        inputs=_INPUTS.decode(row.inputs),
        duplicates=duplicate_codec.decode(row.duplicates),
        max_cost_usd=row.max_cost_usd,
        tokens=tokens,
    )


async def requeue_unclaimed(runtime: Runtime, shard_id: str) -> None:
    """Answer a ring without taking the shard: it is rung for somebody else at once."""
    async with runtime.database.write() as connection:
        await connection.execute(
            update(Shard)
            .where(Shard.id == shard_id, Shard.state == ShardState.ANNOUNCED)
            .values(state=ShardState.QUEUED, announced_at=None)
        )


async def heartbeat(runtime: Runtime, shard: ClaimedShard) -> bool:
    """Renew the lease; False when the shard is no longer ours, or its job wants no more of it."""
    async with runtime.database.write() as connection:
        renewed = await connection.execute(
            update(Shard)
            .where(Shard.id == shard.shard_id, Shard.fence == shard.fence, Shard.state == ShardState.RUNNING)
            .values(lease_until=db_now() + runtime.settings.lease_s)
        )
        if not renewed.rowcount:
            return False
        status = (await connection.execute(select(Job.status).where(Job.id == shard.job_id))).scalar_one_or_none()
    return status == JobStatus.IN_PROGRESS


async def release(
    runtime: Runtime,
    shard: ClaimedShard,
    *,
    delay_s: float,
    counts_as_attempt: bool,
    reason: str,
    waiting_on: str | None,
    blocked_by: str | None = None,
    outage: dict[str, Any] | None = None,
    blocks_job: bool = True,
) -> None:
    """Give the shard back, to be claimed again after `delay_s`. `spent` False returns the attempt too.

    `blocked_by`: a shard whose end it waits for, should that one be open still.
    `outage`: what its job says about the outage that it waits for. Unless the attempt is spent, or `blocks_job` is
    False, none of the job's other shards is due before the delay is over then.

    Fenced: a worker that lost its lease changes nothing.
    """
    async with runtime.database.write() as connection:
        requeued = await connection.execute(
            update(Shard)
            .where(Shard.id == shard.shard_id, Shard.fence == shard.fence, Shard.state == ShardState.RUNNING)
            .values(
                state=ShardState.QUEUED,
                lease_until=None,
                reserved_usd=None,
                next_run_at=db_now() + delay_s,
                attempt=Shard.attempt if counts_as_attempt else Shard.attempt - 1,
                last_error=reason[:500],
                blocked_by=_if_open(blocked_by),
            )
            .returning(Shard.outcome_bitmap, Shard.count, Shard.tokens)
        )
        row = requeued.one_or_none()
        # A visit that failed has had its turn: else a job that gets nowhere is the least served, and always first.
        if row is not None and not counts_as_attempt:
            await fair_share.refund(connection, shard.job_id, remaining_tokens(row))
        if row is not None and waiting_on is not None:
            await connection.execute(
                update(Job)
                .where(Job.id == shard.job_id, Job.status == JobStatus.IN_PROGRESS)
                .values(
                    waiting_on=waiting_on,
                    # Nobody knows when its turn comes.
                    next_attempt_at=None if waiting_on == "fairness" else db_now() + delay_s,
                    outage=outage,
                    not_before=db_now() + delay_s
                    if outage and blocks_job and not counts_as_attempt
                    else Job.not_before,
                    version=Job.version + 1,
                )
            )


def _if_open(shard_id: str | None) -> Any:
    blocker = Shard.__table__.alias("blocker")
    is_open = blocker.c.state.in_(OPEN_STATES)
    return None if shard_id is None else select(blocker.c.id).where(blocker.c.id == shard_id, is_open).scalar_subquery()


def remaining_tokens(row: Any) -> int:
    """The estimated tokens of the inputs that have no outcome yet; inputs are counted where nobody has estimated."""
    still_open = row.count - int(decode_bitmap(row.outcome_bitmap, row.count).sum())
    return int((row.tokens or row.count) * still_open // row.count)


def decode_bitmap(packed: bytes, count: int) -> Bitmap:
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(bool)


def _options(stored: dict[str, Any]) -> Options:
    return Options(
        input_type=stored.get("input_type"),
        truncate=stored.get("truncate") or "none",
        user=stored.get("user"),
        provider_options=stored.get("provider_options") or {},
    )


__all__ = [
    "Bitmap",
    "ClaimedShard",
    "claim",
    "decode_bitmap",
    "heartbeat",
    "release",
    "remaining_tokens",
    "requeue_unclaimed",
]
