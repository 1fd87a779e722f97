"""embed(): the one function that turns inputs into outcomes, for sync requests and for shards of jobs alike.

Batches run side by side. Each is settled by what its errors say to do: fail, retry, fail over, split. The two edges
differ only in their deadline, their lane, and in what they do with a partial failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import replace

from engine.embedding import outage_check, poison
from engine.embedding.attempts import (
    BULK,
    FEW_INPUTS,
    INTERACTIVE,
    TRIES_OF_MANY,
    TRIES_PER_ROUTE,
    EmbedRun,
    OutcomeSink,
    embed_once,
)
from engine.embedding.bisect import Trial
from engine.planning import packing
from engine.planning.learned_limits import UNLIMITED
from models.embedding import Batch, Route
from models.errors import EmbedmillError, UpstreamError, UpstreamRateLimited, UpstreamTimeout

__all__ = ["BULK", "INTERACTIVE", "EmbedRun", "OutcomeSink", "embed"]


async def embed(flight: EmbedRun, batches: Iterable[Batch], *, concurrency: int) -> None:
    """Settle every batch, `concurrency` of them at a time, handing each to `flight.landed` as it lands.

    A refused input is an outcome, not an exception. Raises the first error that says nothing about the inputs (upstream
    down, quota, deadline): what was in flight has then landed, and the rest was not started.
    """
    queue = _respect_learned_limits(flight, batches)
    first = next(queue, None)
    if first is None:
        return
    second = next(queue, None)
    if second is None:  # most sync requests: no task, no group
        try:
            await _run_batch(flight, first)
        except UpstreamTimeout:
            raise  # it had its time: a provider that hangs costs an attempt, whatever ended the wait for it
        except EmbedmillError as error:
            raise flight.stopping or error from None
        return
    ahead = [first, second]
    hung: UpstreamTimeout | None = None
    limited: UpstreamRateLimited | None = None

    async def lane() -> None:
        nonlocal hung, limited
        while flight.stopping is None:
            batch = ahead.pop(0) if ahead else next(queue, None)
            if batch is None:
                return
            try:
                await _run_batch(flight, batch)
            except EmbedmillError as error:
                if isinstance(error, UpstreamRateLimited) and error.is_own:
                    limited = error  # those inputs wait, and no others
                    continue
                hung = error if isinstance(error, UpstreamTimeout) else hung
                flight.stop.cancel(error)
                if flight.lane == INTERACTIVE:  # the answer is an error already: what else is under way is in vain
                    for task in lanes:
                        task.cancel()

    async with asyncio.TaskGroup() as group:
        lanes = [group.create_task(lane()) for _ in range(concurrency)]
    if hung is not None and not any(call.success for call in flight.calls):
        raise hung  # as above: else a provider that hangs for ever would be asked for ever
    if flight.stopping is not None:
        raise flight.stopping
    if limited is not None:
        raise limited


def _respect_learned_limits(flight: EmbedRun, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, cut smaller where calls of their size have been refused, or a quota told, since they were packed."""
    for batch in batches:
        lesson = flight.router.lesson(flight.alias)
        # Nobody cuts what a caller waits for: one call in its turn is sooner through than many.
        most = flight.upstream.max_learned_call_tokens(flight.alias.routes) if flight.lane == BULK else None
        if most is not None:
            lesson = lesson or UNLIMITED
            lesson = replace(lesson, tokens_per_call=min(most, lesson.tokens_per_call))
        for part in [batch] if lesson is None or packing.fits(batch, lesson) else packing.repack(batch, lesson):
            flight.batches += 1
            yield part


async def _run_batch(flight: EmbedRun, batch: Batch) -> None:
    await outage_check.run_batch(flight, batch, _settle, _embed_on_route)


async def _embed_on_route(flight: EmbedRun, batch: Batch, route: Route) -> Route:
    return await embed_once(flight, batch, Trial(1), route)


async def _settle(flight: EmbedRun, batch: Batch) -> None:
    """Bring one batch to its end: vectors, or an error for each input that is to blame, or an exception."""
    trial = Trial(TRIES_PER_ROUTE if len(batch.inputs) <= FEW_INPUTS else TRIES_OF_MANY)
    try:
        await embed_once(flight, batch, trial)
    except UpstreamError as error:
        if flight.stopping is not None or not poison.may_be_found(error):
            raise
        await poison.find(flight, batch, error, trial)
