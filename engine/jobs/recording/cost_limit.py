"""Budget: a job with max_cost_usd pauses before a call that could exceed it.

Each running shard reserves a part of the limit: at most the limit less the cost so far and the reservations of other
running shards. Only running shards have a reservation, so a crash cannot withhold money from the job for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from random import uniform
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.cancellation import CancellationToken
from engine.job_store import JobStore
from engine.jobs.leasing.claim import ClaimedShard, remaining_tokens
from engine.jobs.scheduling import fair_share
from engine.ledger.call_cost import MAX_CONTROL_TOKENS, MILLION
from engine.planning import packing, token_estimator
from engine.webhooks.job_events import record_job_event
from models.base import PICODOLLAR, db_now, usd_text
from models.embedding import Alias, Batch, BatchOutcome
from models.errors import EmbedmillError, InvalidInput
from models.job import Job, JobStatus, Shard, ShardState

MAX_USD = Decimal(1_000_000)
# Reserved in addition to the upper bound of the inputs: for probes and repeated calls.
SPARE_TOKENS = 64 * MAX_CONTROL_TOKENS
# Twice RATE_SAMPLE_S (record_outcomes.py): a rate sample of that age means that nothing was recorded lately.
QUIET_S = 30.0
_AMOUNT = re.compile(r"[0-9]{1,7}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?\Z")


class BudgetExhausted(EmbedmillError):
    """The rest of the reservation does not cover the next input."""

    code = "budget_spent"

    def __init__(self, needed_usd: Decimal) -> None:
        super().__init__("what is left of max_cost_usd does not cover the next call")
        self.needed_usd = needed_usd


def parse_max_cost(text_or_number: str | float) -> Decimal:
    """A caller's max_cost_usd as a Decimal, rounded down to picodollars. Raises InvalidInput."""
    text = str(text_or_number)
    amount = Decimal(text) if _AMOUNT.match(text) else Decimal(0)
    if not PICODOLLAR <= amount <= MAX_USD:
        raise InvalidInput(
            f"Invalid 'max_cost_usd': expected US dollars, more than 0 and at most {MAX_USD:,}.",
            param="max_cost_usd",
            code="invalid_value",
        )
    return amount.quantize(PICODOLLAR, ROUND_DOWN)


async def set_max_cost(connection: AsyncConnection, job_id: str, max_cost_usd: Decimal) -> None:
    """Set the cost limit of a job in the caller's transaction. Raises InvalidInput when it is below the cost so far."""
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
    """The reservation of one run of a shard. The upper bound of a call's cost is taken from it before the call starts.

    It stays reserved until the outcome of the call is recorded. If the process is killed, all calls without a recorded
    outcome are recorded at their upper bound, which the reservation covers.
    """

    def __init__(self) -> None:
        self._rest = Decimal(0)
        self._usd_per_token = Decimal(0)
        self._bound: dict[int, int] = {}  # upper bound of tokens, by index of each unrecorded input
        self._spare = Decimal(0)  # kept for a probe that tells whether an input is at fault
        self._all_durable = asyncio.Event()
        self.delivered: set[int] = set()

    def set_price(self, alias: Alias) -> None:
        """Prices are those of the most expensive route of the alias."""
        self._usd_per_token = highest_price(alias) / MILLION
        self._spare = self.price(MAX_CONTROL_TOKENS)

    def add(self, reserved_usd: Decimal) -> None:
        """Add an amount that the database has reserved."""
        self._rest += reserved_usd

    def within_reservation(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches in order, as far as the reservation covers them; the last one may be shortened."""
        for batch in batches:
            bounds = [token_estimator.upper_bound(item) for item in batch.inputs]
            fit = self._fitting(bounds)
            if fit:
                self._rest -= self.price(sum(bounds[:fit]))
                self._bound.update(zip(batch.indexes[:fit], bounds[:fit], strict=True))
                yield batch if fit == len(bounds) else packing.slice_batch(batch, 0, fit)
            if fit < len(bounds):
                return

    def _fitting(self, bounds: Sequence[int]) -> int:
        """How many of these inputs the reservation covers with a probe to spare; a single input goes without."""
        fit = len(bounds)
        while fit and self.price(sum(bounds[:fit])) + self._spare > self._rest:
            fit = fit // 2 if fit > 8 else fit - 1
        return fit or int(not self._bound and self.price(bounds[0]) <= self._rest)

    def on_outcome(self, part: BatchOutcome) -> None:
        """These inputs have an outcome."""
        self.delivered.update(part.indexes)

    def on_durable(self, parts: Iterable[BatchOutcome]) -> None:
        """The outcomes are recorded: what they cost less than their upper bound is available again."""
        for part in parts:
            reserved = sum(self._bound.pop(index, 0) for index in part.indexes)
            if reserved:
                self._rest += self._usd_per_token * reserved - part.cost_usd.quantize(PICODOLLAR, ROUND_UP)
        if not self._bound:
            self._all_durable.set()

    async def wait_until_durable(self, stop: CancellationToken) -> None:
        """Return once all outcomes are durable, or the token is cancelled."""
        with contextlib.suppress(TimeoutError):
            async with stop.timeout(math.inf):
                while self._bound:
                    self._all_durable.clear()
                    await self._all_durable.wait()

    def check(self, usd: Decimal = Decimal(0)) -> None:
        """Check before a call. Raises BudgetExhausted if the reservation does not also cover `usd`."""
        if usd and self._rest < usd:  # for inputs that are sent a second time
            raise BudgetExhausted(self.price(sum(self._bound.values())) + usd)
        if self._rest < 0:
            raise BudgetExhausted(PICODOLLAR - self._rest)

    def billed(self, usd: Decimal) -> None:
        """Take the upper bound of a call without results, as it is recorded if the process is killed."""
        self._rest -= usd.quantize(PICODOLLAR, ROUND_UP)

    def price(self, count: int) -> Decimal:
        """Upper bound of the cost of tokens: one picodollar more per call covers the ledger's rounding."""
        return self._usd_per_token * count + PICODOLLAR if self._usd_per_token else Decimal(0)


def highest_price(alias: Alias) -> Decimal:
    """US dollars per million tokens on the most expensive route of the alias."""
    return max(route.usd_per_million_tokens for route in alias.routes)


async def reserve(store: JobStore, shard: ClaimedShard, alias: Alias, reservation: SpendReservation) -> None:
    """Reserve the upper bound of the shard's cost, or the rest of the limit. Raises StorageUnavailable."""
    reservation.set_price(alias)
    open_inputs = [item for position in shard.open_positions() if (item := shard.inputs[position]) is not None]
    needed = sum(
        (reservation.price(token_estimator.upper_bound(item)) for item in open_inputs), reservation.price(SPARE_TOKENS)
    )
    async with store.database.write() as connection:
        claim = select(Shard.id).where(Shard.id == shard.shard_id, *_is_current_claim(shard)).with_for_update()
        if (await connection.execute(claim)).first() is None:
            return
        unreserved = await _unreserved(connection, shard)
        reserved = min(needed, max(unreserved, Decimal(0))).quantize(PICODOLLAR, ROUND_DOWN)
        await connection.execute(update(Shard).where(Shard.id == shard.shard_id).values(reserved_usd=reserved))
        if open_inputs and reservation.price(token_estimator.upper_bound(open_inputs[0])) <= reserved:
            await _end_wait(connection, shard)
    reservation.add(reserved)


async def debit(
    connection: AsyncConnection, shard: ClaimedShard, reserved_usd: Decimal | None, cost_usd: Decimal
) -> bool:
    """Debit the cost of results to the shard's reservation, or to the unreserved rest. False: neither covers it.

    For a transaction that has locked the shard. `reserved_usd`: the column, if the shard is running. Late results are
    debited to the present claim, which they save the same calls.
    """
    reserved = reserved_usd or Decimal(0)
    if cost_usd > reserved and cost_usd > await _unreserved(connection, shard):
        return False
    await connection.execute(
        update(Shard).where(Shard.id == shard.shard_id).values(reserved_usd=max(Decimal(0), reserved - cost_usd))
    )
    return True


async def release_or_pause(store: JobStore, shard: ClaimedShard, needed_usd: Decimal) -> None:
    """Release the shard without counting the attempt; pause the job unless another reservation may be returned."""
    async with store.database.write() as connection:
        requeued = await connection.execute(
            update(Shard)
            .where(Shard.id == shard.shard_id, *_is_current_claim(shard))
            .values(
                state=ShardState.QUEUED,
                lease_until=None,
                reserved_usd=None,
                next_run_at=db_now() + uniform(0.3, 1.0),
                attempt=Shard.attempt - 1,
                last_error="the budget is spent",
            )
            .returning(Shard.outcome_bitmap, Shard.count.label("size"), Shard.tokens)
        )
        row = requeued.one_or_none()
        if row is not None:
            await fair_share.refund(connection, shard.job_id, remaining_tokens(row))
        if row is None or needed_usd <= await _unreserved(connection, shard):
            return
        if await _reserved_by_others(connection, shard):
            await _report_wait(connection, shard)
            return
        paused = await connection.execute(
            update(Job)
            .where(Job.id == shard.job_id, Job.status == JobStatus.IN_PROGRESS)
            .values(status=JobStatus.PAUSED, waiting_on="budget", next_attempt_at=None, version=Job.version + 1)
        )
        if paused.rowcount:
            await record_job_event(connection, shard.job_id)


async def _report_wait(connection: AsyncConnection, shard: ClaimedShard) -> None:
    """Let the job say that it waits on its budget, where nothing of it has landed lately and it names no other wait."""
    recorded_at = func.coalesce(Job.rate_sample_at, Job.started_at)
    await connection.execute(
        update(Job)
        .where(
            Job.id == shard.job_id,
            Job.status == JobStatus.IN_PROGRESS,
            Job.waiting_on.is_(None),
            recorded_at < db_now() - QUIET_S,
        )
        .values(waiting_on="budget", next_attempt_at=None, version=Job.version + 1)
    )


async def _end_wait(connection: AsyncConnection, shard: ClaimedShard) -> None:
    """A shard's next call is covered: the job waits on its budget no longer."""
    await connection.execute(
        update(Job)
        .where(Job.id == shard.job_id, Job.status == JobStatus.IN_PROGRESS, Job.waiting_on == "budget")
        .values(waiting_on=None, version=Job.version + 1)
    )


async def _unreserved(connection: AsyncConnection, shard: ClaimedShard) -> Decimal:
    """The limit less the cost so far and the reservations of other running shards. Locks the job."""
    job = (
        await connection.execute(
            select(Job.max_cost_usd, Job.cost_usd, Job.ambiguous_cost_usd)
            .where(Job.id == shard.job_id)
            .with_for_update(key_share=True)
        )
    ).one_or_none()
    if job is None:
        return Decimal(0)
    if job.max_cost_usd is None:
        return MAX_USD
    return Decimal(
        job.max_cost_usd - job.cost_usd - job.ambiguous_cost_usd - await _reserved_by_others(connection, shard)
    )


async def _reserved_by_others(connection: AsyncConnection, shard: ClaimedShard) -> Decimal:
    reserved = await connection.execute(
        select(func.sum(Shard.reserved_usd)).where(
            Shard.job_id == shard.job_id, Shard.state == ShardState.RUNNING, Shard.id != shard.shard_id
        )
    )
    return reserved.scalar_one_or_none() or Decimal(0)


def _is_current_claim(shard: ClaimedShard) -> tuple[Any, ...]:
    return Shard.fence == shard.fence, Shard.state == ShardState.RUNNING
