"""embed(): the one function that turns inputs into outcomes, for sync requests and for shards of jobs alike.

Batches run side by side. Each is settled by the disposition of its errors: fail, retry, fail over, split. The two edges
differ only in their deadline, their lane, and in what they do with a partial failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from engine.embedding import diagnosis, failed_batch
from engine.embedding.attempts import (
    BULK,
    FEW_INPUTS,
    INTERACTIVE,
    TRIES_OF_LARGE_BATCH,
    TRIES_PER_ROUTE,
    EmbedRun,
    OutcomeSink,
    embed_once,
)
from engine.embedding.bisect import Attempts
from engine.planning import packing
from models.embedding import Batch, Route
from models.errors import EmbedmillError, UpstreamError, UpstreamRateLimited, UpstreamTimeout

__all__ = ["BULK", "INTERACTIVE", "EmbedRun", "OutcomeSink", "embed"]


async def embed(run: EmbedRun, batches: Iterable[Batch], *, concurrency: int) -> None:
    """Settle every batch, `concurrency` of them at a time; hands each outcome to `run.on_outcome` as it comes.

    A refused input is an outcome, not an exception. Raises the first error that says nothing about the inputs (upstream
    down, quota, deadline): the batches that were under way have their outcomes then, and the rest was not started.
    """
    pending = _respect_learned_limits(run, batches)
    first = next(pending, None)
    if first is None:
        return
    second = next(pending, None)
    if second is None:  # most sync requests: no task, no group
        try:
            await _settle_if_up(run, first)
        except UpstreamTimeout:
            raise  # rather than the cancel reason, see _Workers.raise_error
        except EmbedmillError as error:
            raise run.cancel_reason or error from None
        return
    workers = _Workers(run, [first, second], pending)
    async with asyncio.TaskGroup() as group:
        workers.tasks = [group.create_task(workers.work()) for _ in range(concurrency)]
    workers.raise_error()


@dataclass(slots=True)
class _Workers:
    """The tasks of one run that settle its batches side by side."""

    run: EmbedRun
    first: list[Batch]
    rest: Iterator[Batch]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    timeout: UpstreamTimeout | None = None
    rate_limit: UpstreamRateLimited | None = None

    async def work(self) -> None:
        """Settle batches until none is left or the run is cancelled."""
        while self.run.cancel_reason is None:
            batch = self.first.pop(0) if self.first else next(self.rest, None)
            if batch is None:
                return
            try:
                await _settle_if_up(self.run, batch)
            except EmbedmillError as error:
                self._record(error)

    def _record(self, error: EmbedmillError) -> None:
        if isinstance(error, UpstreamRateLimited) and error.is_own:
            self.rate_limit = error  # only the inputs that draw it wait
            return
        self.timeout = error if isinstance(error, UpstreamTimeout) else self.timeout
        self.run.stop.cancel(error)
        if self.run.lane == INTERACTIVE:  # the reply is an error already: nobody needs the other batches
            for task in self.tasks:
                task.cancel()

    def raise_error(self) -> None:
        """Raise the error of the run, if any.

        A timeout wins over the cancel reason, so that the shard's attempt is counted; otherwise a provider that never
        answers would be retried without limit.
        """
        if self.timeout is not None and not any(call.success for call in self.run.calls):
            raise self.timeout
        if self.run.cancel_reason is not None:
            raise self.run.cancel_reason
        if self.rate_limit is not None:
            raise self.rate_limit


def _respect_learned_limits(run: EmbedRun, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, split where larger ones were refused, or a quota was learned, since they were packed."""
    for batch in batches:
        limits = run.router.learned_limits(run.alias, is_bulk=run.lane == BULK)
        parts = [batch] if limits is None or packing.is_within(batch, limits) else packing.split_to_fit(batch, limits)
        for part in parts:
            run.batches += 1
            yield part


async def _settle_if_up(run: EmbedRun, batch: Batch) -> None:
    """Settle a batch on routes that are not down, or whose health probe succeeds. Reports the outages that it meets.

    Raises RouteDown, and what `_settle` raises.
    """
    rest: Batch | None = batch
    if run.router.outages.active:
        rest = await diagnosis.probe_if_down(run, batch, _embed_on_route)
    if rest is None:
        return
    try:
        await _settle(run, rest)
    except UpstreamError as error:
        if run.lane == BULK and run.stop.reason is None:
            await diagnosis.confirm_outage(run, error)
        raise


async def _embed_on_route(run: EmbedRun, batch: Batch, route: Route) -> Route:
    return await embed_once(run, batch, Attempts(1), route)


async def _settle(run: EmbedRun, batch: Batch) -> None:
    """Give each input of the batch an outcome: a vector or an error. Raises errors that are about the route."""
    attempts = Attempts(TRIES_PER_ROUTE if len(batch.inputs) <= FEW_INPUTS else TRIES_OF_LARGE_BATCH)
    try:
        await embed_once(run, batch, attempts)
    except UpstreamError as error:
        if run.cancel_reason is not None or not failed_batch.may_be_poisoned(error):
            raise
        await failed_batch.settle(run, batch, error, attempts)
