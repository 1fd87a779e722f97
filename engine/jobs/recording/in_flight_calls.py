"""Under way: the calls of one run, and what becomes of each. Noted in the flight log, should the process be killed.

A call is settled once its results are recorded or spooled, or once it is sure that there was nothing to bill. What the
run cannot settle was sent and never answered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from engine.durability.call_journal import CallJournal, InFlightCall
from engine.jobs.leasing.claim import ClaimedShard
from engine.ledger.billing import max_cost_of
from engine.observability.route_metrics import CUT_OFF
from models.base import trace_id
from models.embedding import Batch, BatchOutcome, Call, Route

WASTED = "wasted"  # answered and billed, in vain


@dataclass(slots=True)
class _Call:
    note: InFlightCall
    slot: int | None
    first_index: int
    code: str = CUT_OFF


class RunCalls:
    def __init__(self, journal: CallJournal, held: ClaimedShard) -> None:
        self._flights = journal
        self._held = held
        self._calls: dict[str, _Call] = {}

    @property
    def inputs(self) -> int:
        """How many inputs the calls have that are not settled."""
        return sum(call.note.inputs for call in self._calls.values())

    def sending(self, batch: Batch, route: Route) -> str:
        """Note a call that is about to be sent; its id."""
        held = self._held
        note = InFlightCall(
            trace_id("call"),
            held.project,
            held.job_id,
            held.shard_id,
            held.fence,
            route.provider,
            route.upstream_model,
            len(batch.inputs),
            time.time(),
            batch.tokens,
            max_cost_of(batch, route),
        )
        self._calls[note.call_id] = _Call(note, self._flights.begin(note), batch.indexes[0])
        return note.call_id

    def failed(self, call_id: str, *, ambiguous: bool, wasted: bool = False) -> None:
        """The call brought nothing. One that was billed, or may have been, stays noted until it is written down."""
        call = self._calls.get(call_id)
        if call is None:  # the run has ended meanwhile, and has written it down
            return
        if ambiguous or wasted:
            call.code = WASTED if wasted else "unanswered"
        else:
            self._flights.end(self._calls.pop(call_id).slot)

    def recording(self, parts: Sequence[BatchOutcome], record_id: str) -> None:
        """These results are to be recorded, or spooled: whoever finds the notes can tell whether they were."""
        for call_id in self._bringing(parts):
            call = self._calls[call_id]
            call.note = msgspec.structs.replace(call.note, record_id=record_id)
            self._flights.renew(call.slot, call.note)

    def kept(self, parts: Sequence[BatchOutcome]) -> None:
        """These results are safe, and so are the calls that brought them."""
        for call_id in self._bringing(parts):
            self._flights.end(self._calls.pop(call_id).slot)

    def _bringing(self, parts: Sequence[BatchOutcome]) -> list[str]:
        """The calls that brought these results."""
        if not self._calls:
            return []
        landed = {index for part in parts for index in part.indexes}
        return [key for key, call in self._calls.items() if call.first_index in landed and call.code == CUT_OFF]

    def unanswered(self) -> list[Call]:
        """Calls that were sent, for all that is known, and of which nothing was heard again.

        What was wasted is among the calls of the claim, with its true cost.
        """
        return [
            Call(
                call.note.provider,
                call.note.upstream_model,
                False,
                None,
                call.note.started_at,
                time.time(),
                error=call.code,
                ambiguous=True,
                inputs=call.note.inputs,
                id=call.note.call_id,
                tokens=call.note.tokens,
                tokens_estimated=True,
                cost_usd=call.note.cost_usd,
            )
            for call in self._calls.values()
            if call.code != WASTED
        ]

    def clear(self) -> None:
        """All of them are written down."""
        for call in self._calls.values():
            self._flights.end(call.slot)
        self._calls.clear()
