"""Open inputs of a claimed shard: upstream calls for its own texts, copied outcomes for duplicates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from engine.embedding.embed import EmbedRun, embed
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import budget
from engine.jobs.recording.duplicates import DuplicateFanout, load_outcomes
from engine.planning import tokens
from engine.runtime import Runtime
from models.embedding import Batch
from models.errors import EmbedmillError, StorageUnavailable

Batches = Callable[[Sequence[int]], Iterable[Batch]]
"""The batches of these positions of a shard."""


class FirstOccurrencesPending(EmbedmillError):
    """First occurrences of some duplicates are still being processed in other shards."""

    code = "waits_for_duplicates"

    def __init__(self, message: str, firsts: Collection[int] = ()) -> None:
        super().__init__(message)
        self.firsts = firsts  # indexes of the job


async def process_open_inputs(
    runtime: Runtime, shard: ClaimedShard, run: EmbedRun, writer: ResultsWriter, batches: Batches
) -> None:
    """Pass an outcome for each open input of the shard to `run.on_outcome`.

    Raises FirstOccurrencesPending, BudgetExhausted and what embed() raises, after all possible outcomes were passed on.
    """
    if not shard.open_duplicates():
        await _embed_open_inputs(runtime, shard, run, writer, batches)
        return
    fanout = DuplicateFanout(shard, run.on_outcome)
    run.on_outcome = fanout
    try:
        # Before the calls, so that a duplicate is stored in one block with the inputs next to it; and once more after
        # them, for first occurrences that other shards have recorded meanwhile.
        await _resolve_duplicates(runtime, shard, fanout, set(map(shard.index, shard.open_positions())))
        await _embed_open_inputs(runtime, shard, run, writer, batches)
        await _resolve_duplicates(runtime, shard, fanout, set())
    finally:
        fanout.flush()
    if fanout.unresolved():
        firsts = set(fanout.unresolved().values())
        raise FirstOccurrencesPending("the same text is still under way in another part of the job", firsts)


async def _embed_open_inputs(
    runtime: Runtime, shard: ClaimedShard, run: EmbedRun, writer: ResultsWriter, batches: Batches
) -> None:
    """Make the calls; with a cost limit, only calls whose upper bound of cost the shard's reservation covers."""
    concurrency = runtime.settings.shard_concurrency
    positions = shard.open_positions()
    if shard.max_cost_usd is None or not positions:
        await embed(run, batches(positions), concurrency=concurrency)
        return
    run.on_outcome = run.spending = reservation = await budget.reserve(runtime, shard, run.alias, run.on_outcome)
    writer.on_durable.append(reservation.on_durable)
    while positions:
        await embed(run, reservation.within_reservation(batches(positions)), concurrency=concurrency)
        remaining = [position for position in positions if shard.index(position) not in reservation.delivered]
        if remaining:
            # Most calls cost less than their upper bound: once they are recorded, the difference covers further calls.
            writer.record_now()
            await reservation.wait_until_durable(run.stop)
            if run.cancel_reason is not None:
                raise run.cancel_reason
        if remaining == positions:
            raise budget.BudgetExhausted(reservation.price(tokens.upper_bound(shard.inputs[remaining[0]] or "")))
        positions = remaining


async def _resolve_duplicates(
    runtime: Runtime, shard: ClaimedShard, fanout: DuplicateFanout, in_flight: set[int]
) -> None:
    firsts = [first for first in fanout.unresolved().values() if first not in in_flight]
    if not firsts:
        return
    try:
        fanout.resolve(*await load_outcomes(runtime, shard, firsts))
    except StorageUnavailable as error:
        raise FirstOccurrencesPending("the database did not say what became of the same text") from error
