"""Work: what a claimed shard still lacks. Its own inputs by calls, their twins by copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from engine import tokens
from engine.embedding import Flight, embed
from engine.jobs import budget
from engine.jobs.claim import Claim
from engine.jobs.twins import Copies, settled
from engine.runtime import Runtime
from models.embedding import Batch
from models.errors import EmbedmillError, StorageUnavailable

Batches = Callable[[Sequence[int]], Iterable[Batch]]
"""The batches of these positions of a shard."""


class FirstsOutstanding(EmbedmillError):
    """The first occurrences of some inputs are still under way in other shards: nothing is wrong, only too early."""

    code = "waits_for_twins"


async def work(runtime: Runtime, held: Claim, flight: Flight, batches: Batches) -> None:
    """Hand an outcome for each waiting input of the shard to `flight.landed`.

    Raises FirstsOutstanding, BudgetSpent, and what embed() raises: what could be done has then landed.
    """
    if not held.waiting_twins():
        await _embed(runtime, held, flight, batches)
        return
    copies = Copies(held, flight.landed)
    flight.landed = copies
    try:
        # Before the calls, so that a copy is stored with its neighbours; and after them, for those that came meanwhile.
        await _look_up(runtime, held, copies, set(map(held.index, held.waiting())))
        await _embed(runtime, held, flight, batches)
        await _look_up(runtime, held, copies, set())
    finally:
        copies.flush()
    if copies.missing():
        raise FirstsOutstanding("the same text is still under way in another part of the job")


async def _embed(runtime: Runtime, held: Claim, flight: Flight, batches: Batches) -> None:
    """Make the calls; under a ceiling, those that the shard's allowance covers whatever they turn out to cost."""
    concurrency = runtime.settings.shard_concurrency
    waiting = held.waiting()
    if held.max_cost_usd is None or not waiting:
        await embed(flight, batches(waiting), concurrency=concurrency)
        return
    flight.landed = purse = await budget.take(runtime, held, flight.alias, flight.landed)
    while waiting:
        await embed(flight, purse.affordable(batches(waiting)), concurrency=concurrency)
        left = [position for position in waiting if held.index(position) not in purse.settled]
        if left == waiting:
            raise budget.BudgetSpent(purse.price(tokens.at_most(held.inputs[left[0]] or "")))
        # Most calls cost less than was set aside for them: what is left may cover more.
        waiting = left


async def _look_up(runtime: Runtime, held: Claim, copies: Copies, under_way: set[int]) -> None:
    firsts = [first for first in copies.missing().values() if first not in under_way]
    if not firsts:
        return
    try:
        copies.know(await settled(runtime, held, firsts))
    except StorageUnavailable as error:
        raise FirstsOutstanding("the database did not say what became of the same text") from error
