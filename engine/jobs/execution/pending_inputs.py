"""Work: what a claimed shard still lacks. Its own inputs by calls, their twins by copies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from engine.embedding.embed import EmbedRun, embed
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import budget
from engine.jobs.recording.duplicates import DuplicateFanout, settled
from engine.planning import tokens
from engine.runtime import Runtime
from models.embedding import Batch
from models.errors import EmbedmillError, StorageUnavailable

Batches = Callable[[Sequence[int]], Iterable[Batch]]
"""The batches of these positions of a shard."""


class FirstOccurrencesPending(EmbedmillError):
    """The first occurrences of some inputs are still under way in other shards: nothing is wrong, only too early."""

    code = "waits_for_twins"

    def __init__(self, message: str, firsts: Collection[int] = ()) -> None:
        super().__init__(message)
        self.firsts = firsts  # indexes of the job


async def work(runtime: Runtime, held: ClaimedShard, flight: EmbedRun, keeper: ResultsWriter, batches: Batches) -> None:
    """Hand an outcome for each waiting input of the shard to `flight.landed`.

    Raises FirstsOutstanding, BudgetSpent, and what embed() raises: what could be done has then landed.
    """
    if not held.waiting_twins():
        await _embed(runtime, held, flight, keeper, batches)
        return
    copies = DuplicateFanout(held, flight.on_outcome)
    flight.on_outcome = copies
    try:
        # Before the calls, so that a copy is stored with its neighbours; and after them, for those that came meanwhile.
        await _look_up(runtime, held, copies, set(map(held.index, held.waiting())))
        await _embed(runtime, held, flight, keeper, batches)
        await _look_up(runtime, held, copies, set())
    finally:
        copies.flush()
    if copies.missing():
        firsts = set(copies.missing().values())
        raise FirstOccurrencesPending("the same text is still under way in another part of the job", firsts)


async def _embed(
    runtime: Runtime, held: ClaimedShard, flight: EmbedRun, keeper: ResultsWriter, batches: Batches
) -> None:
    """Make the calls; under a ceiling, those that the shard's allowance covers whatever they turn out to cost."""
    concurrency = runtime.settings.shard_concurrency
    waiting = held.waiting()
    if held.max_cost_usd is None or not waiting:
        await embed(flight, batches(waiting), concurrency=concurrency)
        return
    flight.on_outcome = flight.spending = purse = await budget.take(runtime, held, flight.alias, flight.on_outcome)
    keeper.on_kept.append(purse.kept)
    while waiting:
        await embed(flight, purse.affordable(batches(waiting)), concurrency=concurrency)
        left = [position for position in waiting if held.index(position) not in purse.settled]
        if left:
            # Most calls cost less than was set aside for them: once they are recorded, what is left may cover more.
            keeper.record_now()
            await purse.all_kept(flight.stop)
            if flight.cancel_reason is not None:
                raise flight.cancel_reason
        if left == waiting:
            raise budget.BudgetExhausted(purse.price(tokens.upper_bound(held.inputs[left[0]] or "")))
        waiting = left


async def _look_up(runtime: Runtime, held: ClaimedShard, copies: DuplicateFanout, under_way: set[int]) -> None:
    firsts = [first for first in copies.missing().values() if first not in under_way]
    if not firsts:
        return
    try:
        copies.know(*await settled(runtime, held, firsts))
    except StorageUnavailable as error:
        raise FirstOccurrencesPending("the database did not say what became of the same text") from error
