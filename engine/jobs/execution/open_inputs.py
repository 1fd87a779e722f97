"""Open inputs of a claimed shard: upstream calls for its own texts, copied outcomes for duplicates."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from engine.embedding.embed import EmbedRun, embed
from engine.job_store import JobStore
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import cost_limit
from engine.jobs.recording.cost_limit import SpendReservation
from engine.jobs.recording.duplicate_outcomes import DuplicateFanout, load_outcomes
from engine.planning import packing, token_estimator
from engine.planning.templates import added_bytes
from models.embedding import Batch, Input
from models.errors import EmbedmillError, StorageUnavailable


class FirstOccurrencesPending(EmbedmillError):
    """First occurrences of some duplicates are still being processed in other shards."""

    code = "waits_for_duplicates"

    def __init__(self, message: str, firsts: Collection[int] = ()) -> None:
        super().__init__(message)
        self.firsts = firsts  # indexes of the job


class OpenInputs:
    """The inputs without an outcome. Outcomes go to `run.on_outcome`, which is the fanout where there is one.

    `fanout`: of a shard with duplicates. `reservation`: of a job with a cost limit.
    """

    def __init__(
        self,
        store: JobStore,
        shard: ClaimedShard,
        run: EmbedRun,
        writer: ResultsWriter,
        fanout: DuplicateFanout | None,
        reservation: SpendReservation | None,
    ) -> None:
        self._store = store
        self._shard = shard
        self._run = run
        self._writer = writer
        self._fanout = fanout
        self._reservation = reservation

    async def embed(self) -> None:
        """Pass on an outcome for each open input of the shard.

        Raises FirstOccurrencesPending, BudgetExhausted and what embed() raises, after all possible outcomes were passed
        on.
        """
        fanout, shard = self._fanout, self._shard
        if fanout is None:
            await self._embed_texts()
            return
        try:
            # Before the calls, so that a duplicate is stored in one block with the inputs next to it; and once more
            # after them, for first occurrences that other shards have recorded meanwhile.
            await self._resolve_duplicates(fanout, set(map(shard.index, shard.open_positions())))
            await self._embed_texts()
            await self._resolve_duplicates(fanout, set())
        finally:
            fanout.flush()
        if fanout.unresolved():
            firsts = set(fanout.unresolved().values())
            raise FirstOccurrencesPending("the same text is still under way in another part of the job", firsts)

    async def _embed_texts(self) -> None:
        """Make the calls; with a cost limit, only calls whose upper bound of cost the shard's reservation covers."""
        run, shard, reservation = self._run, self._shard, self._reservation
        concurrency = self._store.settings.shard_concurrency
        positions = shard.open_positions()
        if reservation is None or not positions:
            await embed(run, self._batches(positions), concurrency=concurrency)
            return
        await cost_limit.reserve(self._store, shard, run.alias, reservation)
        while positions:
            await embed(run, reservation.within_reservation(self._batches(positions)), concurrency=concurrency)
            remaining = [position for position in positions if shard.index(position) not in reservation.delivered]
            if remaining:
                # Most calls cost less than their upper bound: once they are recorded, the difference covers further
                # calls.
                self._writer.record_now()
                await reservation.wait_until_durable(run.stop)
                if run.cancel_reason is not None:
                    raise run.cancel_reason
            if remaining == positions:
                raise cost_limit.BudgetExhausted(
                    reservation.price(token_estimator.upper_bound(shard.inputs[remaining[0]] or ""))
                )
            positions = remaining

    def _batches(self, positions: Sequence[int]) -> list[Batch]:
        shard, alias, router = self._shard, self._run.alias, self._run.router
        inputs: list[Input] = [item for i in positions if (item := shard.inputs[i]) is not None]
        limits = packing.limits_of(alias.routes, inputs_per_call=self._store.settings.batch_inputs)
        indexes = [shard.first_index + i for i in positions]
        ratio, exact = router.tokens_per_byte(alias), packing.has_exact_tokenizer(alias.routes)
        return list(
            packing.pack(
                inputs,
                indexes,
                limits,
                shard.width,
                shard.options,
                tokens_per_byte=ratio,
                exact=exact,
                added_bytes=added_bytes(alias.routes, shard.options),
            )
        )

    async def _resolve_duplicates(self, fanout: DuplicateFanout, still_to_send: set[int]) -> None:
        firsts = [first for first in fanout.unresolved().values() if first not in still_to_send]
        if not firsts:
            return
        try:
            fanout.resolve(*await load_outcomes(self._store.database, self._shard, firsts))
        except StorageUnavailable as error:
            raise FirstOccurrencesPending("the database did not say what became of the same text") from error
