"""Budget: what a job with a ceiling may still spend. It pauses before the call that could take it over.

Each running shard holds an allowance, taken from what is left of the ceiling after what was charged and what other
running shards hold. A shard that does not run holds nothing, so that no death can keep money from the job for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from decimal import ROUND_DOWN, Decimal
from random import uniform
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine import planning, tokens
from engine.jobs import turns
from engine.jobs.claim import Claim, open_tokens
from engine.runtime import Runtime
from models.base import PICODOLLAR, db_now, usd_text
from models.embedding import Alias, Batch, Landed
from models.errors import EmbedmillError, InvalidInput
from models.job import Job, JobStatus, Shard, ShardState

MILLION = Decimal(1_000_000)
MOST_USD = Decimal(1_000_000)
_AMOUNT = re.compile(r"[0-9]{1,7}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?\Z")


class BudgetSpent(EmbedmillError):
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
        await connection.execute(select(Job.cost_usd).where(Job.id == job_id).with_for_update(key_share=True))
    ).one_or_none()
    if job is not None and job.cost_usd >= max_cost_usd:
        raise InvalidInput(
            f"Invalid 'max_cost_usd': the job has cost {usd_text(job.cost_usd)} already.",
            param="max_cost_usd",
            code="invalid_value",
        )
    await connection.execute(
        update(Job).where(Job.id == job_id).values(max_cost_usd=max_cost_usd, version=Job.version + 1)
    )


class Purse:
    """The allowance of one run of a shard. Every call is paid for before it starts, by the most that it may cost."""

    def __init__(self, allowance_usd: Decimal, alias: Alias, landed: Callable[[Landed], None]) -> None:
        self._rest = allowance_usd
        self._usd_per_token = dearest(alias) / MILLION
        self._landed = landed
        self._bound: dict[int, int] = {}  # tokens that each input under way may be at the most
        self.settled: set[int] = set()

    def affordable(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, in order, for as long as they fit; the last of them may be cut short."""
        for batch in batches:
            bounds = [tokens.at_most(item) for item in batch.inputs]
            fit = len(bounds)
            while fit and self.price(sum(bounds[:fit])) > self._rest:
                fit = fit // 2 if fit > 8 else fit - 1
            if fit:
                self._rest -= self.price(sum(bounds[:fit]))
                self._bound.update(zip(batch.indexes[:fit], bounds[:fit], strict=True))
                yield batch if fit == len(bounds) else planning.part(batch, 0, fit)
            if fit < len(bounds):
                return

    def __call__(self, part: Landed) -> None:
        """Hand on what landed; what it did not cost of what was set aside for it is free again."""
        aside = sum(self._bound.pop(index, 0) for index in part.indexes)
        self._rest += self._usd_per_token * aside - part.cost_usd
        self.settled.update(part.indexes)
        self._landed(part)

    def price(self, count: int) -> Decimal:
        """The most that tokens may cost. The ledger rounds to picodollars: one more for each call is never missed."""
        return self._usd_per_token * count + PICODOLLAR if self._usd_per_token else Decimal(0)


def dearest(alias: Alias) -> Decimal:
    """US dollars for a million tokens on the dearest of the alias's routes."""
    return max(route.usd_per_million_tokens for route in alias.routes)


async def take(runtime: Runtime, held: Claim, alias: Alias, landed: Callable[[Landed], None]) -> Purse:
    """Set aside what the shard may cost at the most, or what is left. Raises StorageUnavailable."""
    purse = Purse(Decimal(0), alias, landed)
    waiting = [item for position in held.waiting() if (item := held.inputs[position]) is not None]
    wanted = sum((purse.price(tokens.at_most(item)) for item in waiting), Decimal(0))
    async with runtime.database.write() as connection:
        mine = select(Shard.id).where(Shard.id == held.shard_id, *_held(held)).with_for_update()
        if (await connection.execute(mine)).first() is None:
            return purse
        left = await _left(connection, held)
        allowance = min(wanted, max(left, Decimal(0))).quantize(PICODOLLAR, ROUND_DOWN)
        await connection.execute(update(Shard).where(Shard.id == held.shard_id).values(allowance_usd=allowance))
    return Purse(allowance, alias, landed)


async def charge(connection: AsyncConnection, held: Claim, allowance_usd: Decimal | None, cost_usd: Decimal) -> bool:
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


async def wait_or_pause(runtime: Runtime, held: Claim, needed_usd: Decimal) -> None:
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
            await turns.give_back(connection, held.job_id, open_tokens(shard))
        if shard is None or needed_usd <= await _left(connection, held):
            return
        if await _held_by_others(connection, held):
            return
        await connection.execute(
            update(Job)
            .where(Job.id == held.job_id, Job.status == JobStatus.IN_PROGRESS)
            .values(status=JobStatus.PAUSED, waiting_on="budget", next_attempt_at=None, version=Job.version + 1)
        )


async def _left(connection: AsyncConnection, held: Claim) -> Decimal:
    """What neither results nor other running shards have of the ceiling. Locks the job, so that it stays true."""
    job = (
        await connection.execute(
            select(Job.max_cost_usd, Job.cost_usd).where(Job.id == held.job_id).with_for_update(key_share=True)
        )
    ).one_or_none()
    if job is None:
        return Decimal(0)
    if job.max_cost_usd is None:
        return MOST_USD
    return Decimal(job.max_cost_usd - job.cost_usd - await _held_by_others(connection, held))


async def _held_by_others(connection: AsyncConnection, held: Claim) -> Decimal:
    others = await connection.execute(
        select(func.sum(Shard.allowance_usd)).where(
            Shard.job_id == held.job_id, Shard.state == ShardState.RUNNING, Shard.id != held.shard_id
        )
    )
    return others.scalar_one_or_none() or Decimal(0)


def _held(held: Claim) -> tuple[Any, ...]:
    return Shard.fence == held.fence, Shard.state == ShardState.RUNNING
