"""Work: what a claimed shard still lacks. Its own inputs by calls, their twins by copies."""

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
    """The first occurrences of some inputs are still under way in other shards: nothing is wrong, only too early."""

    code = "waits_for_twins"

    def __init__(self, message: str, firsts: Collection[int] = ()) -> None:
        super().__init__(message)
        self.firsts = firsts  # indexes of the job


async def process_open_inputs(
    runtime: Runtime, shard: ClaimedShard, run: EmbedRun, writer: ResultsWriter, batches: Batches
) -> None:
    """Hand an outcome for each waiting input of the shard to `flight.landed`.

    Raises FirstsOutstanding, BudgetSpent, and what embed() raises: what could be done has then landed.
    """
    if not shard.open_duplicates():
        await _embed_open_inputs(runtime, shard, run, writer, batches)
        return
    fanout = DuplicateFanout(shard, run.landed)
    run.landed = fanout
    try:
        # Before the calls, so that a copy is stored with its neighbours; and after them, for those that came meanwhile.
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
    """Make the calls; under a ceiling, those that the shard's allowance covers whatever they turn out to cost."""
    concurrency = runtime.settings.shard_concurrency
    positions = shard.open_positions()
    if shard.max_cost_usd is None or not positions:
        await embed(run, batches(positions), concurrency=concurrency)
        return
    run.landed = run.spending = reservation = await budget.reserve(runtime, shard, run.alias, run.landed)
    writer.on_durable.append(reservation.on_durable)
    while positions:
        await embed(run, reservation.within_reservation(batches(positions)), concurrency=concurrency)
        remaining = [position for position in positions if shard.index(position) not in reservation.delivered]
        if remaining:
            # Most calls cost less than was set aside for them: once they are recorded, what is left may cover more.
            writer.record_now()
            await reservation.wait_until_durable(run.stop)
            if run.stopping is not None:
                raise run.stopping
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
