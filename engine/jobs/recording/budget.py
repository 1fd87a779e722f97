"""Budget: what a job with a ceiling may still spend. It pauses before the call that could take it over.

Each running shard holds an allowance, taken from what is left of the ceiling after what was charged and what other
running shards hold. A shard that does not run holds nothing, so that no death can keep money from the job for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from random import uniform
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.cancellation import CancellationToken
from engine.jobs.leasing.claim import ClaimedShard, open_tokens
from engine.jobs.scheduling import fair_share
from engine.ledger.billing import MAX_CONTROL_TOKENS, MILLION
from engine.planning import packing, tokens
from engine.runtime import Runtime
from models.base import PICODOLLAR, db_now, usd_text
from models.embedding import Alias, Batch, BatchOutcome
from models.errors import EmbedmillError, InvalidInput
from models.job import Job, JobStatus, Shard, ShardState

MOST_USD = Decimal(1_000_000)
# What a run takes beside what its inputs may cost: for calls of ours, and calls that are made again.
SPARE_TOKENS = 64 * MAX_CONTROL_TOKENS
_AMOUNT = re.compile(r"[0-9]{1,7}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?\Z")


class BudgetExhausted(EmbedmillError):
    """What is left of the allowance does not cover the next input."""

    code = "budget_spent"

    def __init__(self, needed_usd: Decimal) -> None:
        super().__init__("what is left of max_cost_usd does not cover the next call")
        self.needed_usd = needed_usd


def ceiling(given: str | float) -> Decimal:
    """An amount of US dollars as the caller wrote it. Raises InvalidInput."""
    text = str(given)
    amount = Decimal(text) if _AMOUNT.match(text) else Decimal(0)
    if not PICODOLLAR <= amount <= MOST_USD:
        raise InvalidInput(
            f"Invalid 'max_cost_usd': expected US dollars, more than 0 and at most {MOST_USD:,}.",
            param="max_cost_usd",
            code="invalid_value",
        )
    return amount.quantize(PICODOLLAR, ROUND_DOWN)


async def raise_ceiling(connection: AsyncConnection, job_id: str, max_cost_usd: Decimal) -> None:
    """Give a job a new ceiling, in the caller's transaction. Raises InvalidInput when as much is charged already."""
    job = (
        await connection.execute(
            select(Job.cost_usd, Job.ambiguous_cost_usd).where(Job.id == job_id).with_for_update(key_share=True)
        )
    ).one_or_none()
    if job is not None and job.cost_usd + job.ambiguous_cost_usd >= max_cost_usd:
        raise InvalidInput(
            f"Invalid 'max_cost_usd': the job may have cost {usd_text(job.cost_usd + job.ambiguous_cost_usd)} already: "
            "give more than that.",
            param="max_cost_usd",
            code="invalid_value",
        )
    await connection.execute(
        update(Job).where(Job.id == job_id).values(max_cost_usd=max_cost_usd, version=Job.version + 1)
    )


class SpendReservation:
    """The allowance of one run of a shard. Every call is paid for before it starts, by the most that it may cost.

    That stays set aside until what came of the call is recorded: should the process be killed, all calls of which no
    result is recorded are written down with the most that they may have cost, and the allowance covers them.
    """

    def __init__(self, allowance_usd: Decimal, alias: Alias, landed: Callable[[BatchOutcome], None]) -> None:
        self._rest = allowance_usd
        self._usd_per_token = highest_price(alias) / MILLION
        self._landed = landed
        self._bound: dict[int, int] = {}  # tokens at the most of each input that is under way or not yet recorded
        self._spare = self.price(MAX_CONTROL_TOKENS)  # left for a call of ours, that shows what is to blame
        self._all_kept = asyncio.Event()
        self.settled: set[int] = set()

    def affordable(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, in order, for as long as they fit; the last of them may be cut short."""
        for batch in batches:
            bounds = [tokens.upper_bound(item) for item in batch.inputs]
            fit = self._fitting(bounds)
            if fit:
                self._rest -= self.price(sum(bounds[:fit]))
                self._bound.update(zip(batch.indexes[:fit], bounds[:fit], strict=True))
                yield batch if fit == len(bounds) else packing.slice_batch(batch, 0, fit)
            if fit < len(bounds):
                return

    def _fitting(self, bounds: Sequence[int]) -> int:
        """How many of these inputs may be sent, so that a call of ours stays possible; one goes without that."""
        fit = len(bounds)
        while fit and self.price(sum(bounds[:fit])) + self._spare > self._rest:
            fit = fit // 2 if fit > 8 else fit - 1
        return fit or int(not self._bound and self.price(bounds[0]) <= self._rest)

    def __call__(self, part: BatchOutcome) -> None:
        """Hand on what landed."""
        self.settled.update(part.indexes)
        self._landed(part)

    def kept(self, parts: Iterable[BatchOutcome]) -> None:
        """These are recorded: what they did not cost of what was set aside for them is free again."""
        for part in parts:
            aside = sum(self._bound.pop(index, 0) for index in part.indexes)
            if aside:
                self._rest += self._usd_per_token * aside - part.cost_usd.quantize(PICODOLLAR, ROUND_UP)
        if not self._bound:
            self._all_kept.set()

    async def all_kept(self, stop: CancellationToken) -> None:
        """Return once all that landed is recorded, or the stop is given."""
        with contextlib.suppress(TimeoutError):
            async with stop.timeout(math.inf):
                while self._bound:
                    self._all_kept.clear()
                    await self._all_kept.wait()

    def check(self, usd: Decimal = Decimal(0)) -> None:
        """Calls for inputs are paid for already. Raises BudgetSpent where that, or `usd` more, is not left."""
        if usd and self._rest < usd:  # it is for inputs that are to be sent once more
            raise BudgetExhausted(self.price(sum(self._bound.values())) + usd)
        if self._rest < 0:
            raise BudgetExhausted(PICODOLLAR - self._rest)

    def billed(self, usd: Decimal) -> None:
        """Pay for a call that brings nothing: by the most that it may cost, for so it is noted should we be killed."""
        self._rest -= usd.quantize(PICODOLLAR, ROUND_UP)

    def price(self, count: int) -> Decimal:
        """The most that tokens may cost. The ledger rounds to picodollars: one more for each call is never missed."""
        return self._usd_per_token * count + PICODOLLAR if self._usd_per_token else Decimal(0)


def highest_price(alias: Alias) -> Decimal:
    """US dollars for a million tokens on the dearest of the alias's routes."""
    return max(route.usd_per_million_tokens for route in alias.routes)


async def take(
    runtime: Runtime, held: ClaimedShard, alias: Alias, landed: Callable[[BatchOutcome], None]
) -> SpendReservation:
    """Set aside what the shard may cost at the most, or what is left. Raises StorageUnavailable."""
    purse = SpendReservation(Decimal(0), alias, landed)
    waiting = [item for position in held.waiting() if (item := held.inputs[position]) is not None]
    wanted = sum((purse.price(tokens.upper_bound(item)) for item in waiting), purse.price(SPARE_TOKENS))
    async with runtime.database.write() as connection:
        mine = select(Shard.id).where(Shard.id == held.shard_id, *_held(held)).with_for_update()
        if (await connection.execute(mine)).first() is None:
            return purse
        left = await _left(connection, held)
        allowance = min(wanted, max(left, Decimal(0))).quantize(PICODOLLAR, ROUND_DOWN)
        await connection.execute(update(Shard).where(Shard.id == held.shard_id).values(allowance_usd=allowance))
    return SpendReservation(allowance, alias, landed)


async def charge(
    connection: AsyncConnection, held: ClaimedShard, allowance_usd: Decimal | None, cost_usd: Decimal
) -> bool:
    """Take what results cost from the shard's allowance, or else from what nobody holds. False: nothing covers it.

    For a transaction that has locked the shard. `allowance_usd` is what it says of itself, if it runs: results of a
    worker that has lost it are charged to whoever holds it now, for whom they save the same calls.
    """
    allowance = allowance_usd or Decimal(0)
    if cost_usd > allowance and cost_usd > await _left(connection, held):
        return False
    await connection.execute(
        update(Shard).where(Shard.id == held.shard_id).values(allowance_usd=max(Decimal(0), allowance - cost_usd))
    )
    return True


async def wait_or_pause(runtime: Runtime, held: ClaimedShard, needed_usd: Decimal) -> None:
    """Give the shard back unspent: until others have given theirs back, or, where nobody holds any, until a resume."""
    async with runtime.database.write() as connection:
        given_back = await connection.execute(
            update(Shard)
            .where(Shard.id == held.shard_id, *_held(held))
            .values(
                state=ShardState.QUEUED,
                lease_until=None,
                allowance_usd=None,
                next_run_at=db_now() + uniform(0.3, 1.0),
                attempt=Shard.attempt - 1,
                last_error="the budget is spent",
            )
            .returning(Shard.settled, Shard.count, Shard.tokens)
        )
        shard = given_back.one_or_none()
        if shard is not None:
            await fair_share.give_back(connection, held.job_id, open_tokens(shard))
        if shard is None or needed_usd <= await _left(connection, held):
            return
        if await _held_by_others(connection, held):
            return
        await connection.execute(
            update(Job)
            .where(Job.id == held.job_id, Job.status == JobStatus.IN_PROGRESS)
            .values(status=JobStatus.PAUSED, waiting_on="budget", next_attempt_at=None, version=Job.version + 1)
        )


async def _left(connection: AsyncConnection, held: ClaimedShard) -> Decimal:
    """What neither results nor other running shards have of the ceiling. Locks the job, so that it stays true."""
    job = (
        await connection.execute(
            select(Job.max_cost_usd, Job.cost_usd, Job.ambiguous_cost_usd)
            .where(Job.id == held.job_id)
            .with_for_update(key_share=True)
        )
    ).one_or_none()
    if job is None:
        return Decimal(0)
    if job.max_cost_usd is None:
        return MOST_USD
    return Decimal(job.max_cost_usd - job.cost_usd - job.ambiguous_cost_usd - await _held_by_others(connection, held))


async def _held_by_others(connection: AsyncConnection, held: ClaimedShard) -> Decimal:
    others = await connection.execute(
        select(func.sum(Shard.allowance_usd)).where(
            Shard.job_id == held.job_id, Shard.state == ShardState.RUNNING, Shard.id != held.shard_id
        )
    )
    return others.scalar_one_or_none() or Decimal(0)


def _held(held: ClaimedShard) -> tuple[Any, ...]:
    return Shard.fence == held.fence, Shard.state == ShardState.RUNNING
