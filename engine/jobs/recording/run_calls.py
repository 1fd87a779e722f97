"""Calls in flight of one run, kept in the call journal in case the process is killed.

A call leaves the journal once its results are recorded or spooled, or once it is certain that nothing was billed. The
others were sent and not answered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from engine.durability.call_journal import CallJournal, InFlightCall
from engine.jobs.leasing.claim import ClaimedShard
from engine.ledger.call_cost import max_cost_of
from engine.observability.route_metrics import CUT_OFF
from models.base import random_id
from models.embedding import Batch, BatchOutcome, Call, Route

WASTED = "wasted"  # answered and billed, without a usable result


@dataclass(slots=True)
class _Call:
    entry: InFlightCall
    slot: int | None
    first_index: int
    code: str = CUT_OFF


class RunCalls:
    """The calls of one run that are in flight or whose results are not durable yet."""

    def __init__(self, journal: CallJournal, shard: ClaimedShard) -> None:
        self._journal = journal
        self._shard = shard
        self._calls: dict[str, _Call] = {}

    @property
    def inputs(self) -> int:
        """The number of inputs of these calls."""
        return sum(call.entry.inputs for call in self._calls.values())

    def sending(self, batch: Batch, route: Route) -> str:
        """Add a call that is about to be sent to the journal. Returns its id."""
        shard = self._shard
        entry = InFlightCall(
            random_id("call"),
            shard.project,
            shard.job_id,
            shard.shard_id,
            shard.fence,
            route.provider,
            route.upstream_model,
            len(batch.inputs),
            time.time(),
            batch.tokens,
            max_cost_of(batch, route),
        )
        self._calls[entry.call_id] = _Call(entry, self._journal.begin(entry), batch.indexes[0])
        return entry.call_id

    def failed(self, call_id: str, *, ambiguous: bool, wasted: bool = False) -> None:
        """The call has no result. One that was billed, or may have been, stays in the journal until it is recorded."""
        call = self._calls.get(call_id)
        if call is None:  # the run has ended and recorded it meanwhile
            return
        if ambiguous or wasted:
            call.code = WASTED if wasted else "unanswered"
        else:
            self._journal.end(self._calls.pop(call_id).slot)

    def recording(self, parts: Sequence[BatchOutcome], record_id: str) -> None:
        """Add the record id of outcomes to the journal, so that another process can tell whether they were recorded."""
        for call_id in self._calls_of(parts):
            call = self._calls[call_id]
            call.entry = msgspec.structs.replace(call.entry, record_id=record_id)
            self._journal.renew(call.slot, call.entry)

    def mark_durable(self, parts: Sequence[BatchOutcome]) -> None:
        """Remove the calls of these durable outcomes from the journal."""
        for call_id in self._calls_of(parts):
            self._journal.end(self._calls.pop(call_id).slot)

    def _calls_of(self, parts: Sequence[BatchOutcome]) -> list[str]:
        """The ids of the calls that returned these outcomes."""
        if not self._calls:
            return []
        indexes = {index for part in parts for index in part.indexes}
        return [key for key, call in self._calls.items() if call.first_index in indexes and call.code == CUT_OFF]

    def unanswered(self) -> list[Call]:
        """Calls that may have been sent and were not answered, as ambiguous calls.

        Wasted calls are in the claim's own list, with their true cost.
        """
        return [
            Call(
                call.entry.provider,
                call.entry.upstream_model,
                False,
                None,
                call.entry.started_at,
                time.time(),
                error=call.code,
                ambiguous=True,
                inputs=call.entry.inputs,
                id=call.entry.call_id,
                tokens=call.entry.tokens,
                tokens_estimated=True,
                cost_usd=call.entry.cost_usd,
            )
            for call in self._calls.values()
            if call.code != WASTED
        ]

    def clear(self) -> None:
        """Remove all calls from the journal once they are recorded."""
        for call in self._calls.values():
            self._journal.end(call.slot)
        self._calls.clear()
