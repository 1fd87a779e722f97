"""Claims: a worker leases a shard by the database's clock. Each claim raises the shard's fencing token."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, and_, case, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from engine.job_store import JobStore
from engine.jobs.leasing import duplicate_codec
from engine.jobs.scheduling import fair_share
from engine.limiter.call_waits import CallWaits
from models.base import db_now
from models.batch import MIXED, JobVariant
from models.embedding import Input, Options
from models.job import OPEN_STATES, Job, JobStatus, Shard, ShardInputs, ShardState
from models.outage import RouteOutage

Bitmap = npt.NDArray[np.bool_]
_INPUTS = msgspec.msgpack.Decoder(list[str | list[int] | None])
# Another worker may claim the only due shard of the next job at the same moment: the choice is made again.
MAX_LOST_RACES = 10
RACE_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class ClaimedShard:
    """A claimed shard with its inputs, and the model and options of its job or of its variant."""

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
    tokens: int  # estimated, of the inputs that were open when it was claimed; charged to the fair share
    duplicates: Mapping[int, int]  # position in the shard: the job's index of the first occurrence
    max_cost_usd: Decimal | None = None  # of the job, at the time of the claim
    no_outages: bool = False  # when it was claimed: read there, where it costs no statement of its own
    seconds_left: float = math.inf  # until the deadline of its job, at the time of the claim
    waits: CallWaits = field(default_factory=CallWaits, compare=False)  # waits of its calls for quota

    def index(self, position: int) -> int:
        """The job's index of a position in the shard."""
        return self.first_index + position

    def open_positions(self) -> list[int]:
        """Positions in the shard that have no outcome yet and must be embedded."""
        return [i for i in range(self.count) if not self.outcome_bits[i] and self.inputs[i] is not None]

    def open_duplicates(self) -> dict[int, int]:
        """Duplicates without an outcome: position in the shard, and the job's index of the first occurrence."""
        return {position: first for position, first in self.duplicates.items() if not self.outcome_bits[position]}


async def claim_next(store: JobStore, worker: str) -> ClaimedShard | None:
    """Lease the due shard that is next by fair share; None when none is due. Raises StorageUnavailable."""
    attempts = store.settings.shard_attempts
    for lost_races in range(MAX_LOST_RACES):
        async with store.database.write() as connection:
            leased = await _lease(store, connection, Shard.id == _next_free_shard(attempts), worker)
        if leased is not None:
            return await _load(store, *leased)
        async with store.database.read() as connection:
            if await fair_share.next_shard(connection, attempts) is None:
                return None
        await asyncio.sleep(random.uniform(0.0, RACE_PAUSE_S * (lost_races + 1)))
    return None


async def claim(store: JobStore, shard_id: str, worker: str) -> ClaimedShard | None:
    """Lease this shard; None when it cannot be claimed: closed, deleted, not due, blocked or leased.

    Raises StorageUnavailable.
    """
    async with store.database.write() as connection:
        leased = await _lease(store, connection, Shard.id == shard_id, worker)
    return None if leased is None else await _load(store, *leased)


def _next_free_shard(attempts: int) -> Any:
    """Of the job that is next by fair share, the first due shard that no other worker is about to claim.

    Claims of one job may run at the same time: each takes another of its shards, and they wait for each other only to
    advance its virtual time.
    """
    due, following = aliased(Shard), Shard.__table__.alias("following")
    job_id = select(following.c.job_id).where(following.c.id == fair_share.next_shard_id(attempts)).scalar_subquery()
    return (
        select(due.id)
        .where(due.job_id == job_id, fair_share.is_due(attempts, due))
        .order_by(due.first_index)
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True)
        .scalar_subquery()
    )


async def _lease(
    store: JobStore, connection: AsyncConnection, which: ColumnElement[bool], worker: str
) -> tuple[Any, int] | None:
    """Lease a shard that is due and free. Returns its row and its tokens, which are charged to its job."""
    running_job = select(Job.id).where(
        Job.id == Shard.job_id, Job.status == JobStatus.IN_PROGRESS, Job.deleted_at.is_(None)
    )
    row = (
        await connection.execute(
            update(Shard)
            .where(
                which,
                or_(
                    Shard.state == ShardState.QUEUED,
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
                lease_until=db_now() + store.settings.lease_s,
                worker=worker,
            )
            .returning(
                Shard.id,
                Shard.job_id,
                Shard.attempt,
                Shard.fence,
                Shard.outcome_bitmap,
                Shard.count.label("size"),
                Shard.tokens,
            )
        )
    ).one_or_none()
    if row is None:
        return None
    tokens = remaining_tokens(row)
    await fair_share.advance(store.database, connection, row.job_id, tokens)
    return row, tokens


async def _load(store: JobStore, claimed: Any, tokens: int) -> ClaimedShard | None:
    """The inputs and options of a shard that was just claimed; None when it was deleted meanwhile."""
    columns = (
        Job.id,
        Job.project,
        Job.key_id,
        Job.alias,
        Job.dimensions,
        Job.options,
        JobVariant.alias.label("variant_alias"),
        JobVariant.dimensions.label("variant_dimensions"),
        JobVariant.options.label("variant_options"),
        Shard.first_index,
        ShardInputs.inputs,
        ShardInputs.duplicates,
        Job.max_cost_usd,
        (Job.expires_at - db_now()).label("seconds_left"),
        select(func.count()).select_from(RouteOutage).scalar_subquery().label("outages"),
    )
    async with store.database.read() as connection:
        row = (
            await connection.execute(
                select(*columns)
                .join(Shard, Shard.job_id == Job.id)
                .join(ShardInputs, ShardInputs.shard_id == Shard.id)
                .outerjoin(JobVariant, and_(JobVariant.job_id == Shard.job_id, JobVariant.number == Shard.variant))
                .where(Shard.id == claimed.id)
            )
        ).one_or_none()
    if row is None:
        return None
    has_variant = row.variant_alias is not None
    return ClaimedShard(
        shard_id=claimed.id,
        job_id=row.id,
        project=row.project,
        key_id=row.key_id,
        alias=row.variant_alias if has_variant else row.alias,
        width=row.variant_dimensions if has_variant else row.dimensions,
        options=options_of(row.variant_options if has_variant else row.options),
        first_index=row.first_index,
        count=claimed.size,
        attempt=claimed.attempt,
        fence=claimed.fence,
        outcome_bits=decode_bitmap(claimed.outcome_bitmap, claimed.size),
        inputs=_INPUTS.decode(row.inputs),
        duplicates=duplicate_codec.decode(row.duplicates),
        max_cost_usd=row.max_cost_usd,
        tokens=tokens,
        no_outages=not row.outages,
        seconds_left=row.seconds_left,
    )


async def heartbeat(store: JobStore, shard: ClaimedShard) -> bool:
    """Renew the lease. False: this claim has ended, or the job is not in progress. Raises StorageUnavailable."""
    async with store.database.write() as connection:
        renewed = await connection.execute(
            update(Shard)
            .where(Shard.id == shard.shard_id, Shard.fence == shard.fence, Shard.state == ShardState.RUNNING)
            .values(lease_until=db_now() + store.settings.lease_s)
        )
        if not renewed.rowcount:
            return False
        status = (await connection.execute(select(Job.status).where(Job.id == shard.job_id))).scalar_one_or_none()
    return status == JobStatus.IN_PROGRESS


async def release(
    store: JobStore,
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
    """Queue the shard again, to be claimed after `delay_s`. `counts_as_attempt` False takes the attempt back.

    `blocked_by`: a shard that must close first, if it is still open.
    `outage`: stored in the job as the outage that it waits for. Unless the attempt counts, or `blocks_job` is False,
    it also defers the job's other shards by `delay_s`, unless these have other models.

    Fenced: after the lease was lost it changes nothing. Raises StorageUnavailable.
    """
    async with store.database.write() as connection:
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
            .returning(Shard.outcome_bitmap, Shard.count.label("size"), Shard.tokens)
        )
        row = requeued.one_or_none()
        # No refund for a failed attempt: a job that only fails would otherwise always be served first.
        if row is not None and not counts_as_attempt:
            await fair_share.refund(connection, shard.job_id, remaining_tokens(row))
        if row is not None and waiting_on is not None:
            await connection.execute(
                update(Job)
                .where(Job.id == shard.job_id, Job.status == JobStatus.IN_PROGRESS)
                .values(
                    waiting_on=waiting_on,
                    # The time of its next turn is not known.
                    next_attempt_at=None if waiting_on == "fairness" else db_now() + delay_s,
                    outage=outage,
                    not_before=case((Job.alias != MIXED, db_now() + delay_s), else_=Job.not_before)
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
    """Estimated tokens of the inputs without an outcome; the number of inputs where there is no estimate."""
    still_open = row.size - int(decode_bitmap(row.outcome_bitmap, row.size).sum())
    return int((row.tokens or row.size) * still_open // row.size)


def decode_bitmap(packed: bytes, count: int) -> Bitmap:
    """One bool per input from an outcome bitmap: shape (count,)."""
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(bool)


def options_of(stored: dict[str, Any]) -> Options:
    """The options of a job, or of a variant, as its row has them."""
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
    "claim_next",
    "decode_bitmap",
    "heartbeat",
    "options_of",
    "release",
    "remaining_tokens",
]
