"""Under way: the calls of one run, and what becomes of each. Noted in the flight log, should the process be killed.

A call is settled once its results are recorded or spooled, or once it is sure that there was nothing to bill. What the
run cannot settle was sent and never answered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.flight_log import FlightLog, Note
from engine.jobs.claim import Claim
from models.base import trace_id
from models.embedding import Batch, Call, Landed, Route

CUT_OFF = "cut_off"  # by a cancellation or a time limit; or its results could not be kept


@dataclass(slots=True)
class _Call:
    note: Note
    slot: int | None
    first_index: int
    code: str = CUT_OFF


class UnderWay:
    def __init__(self, flights: FlightLog, held: Claim) -> None:
        self._flights = flights
        self._held = held
        self._calls: dict[str, _Call] = {}

    def sending(self, batch: Batch, route: Route) -> str:
        """Note a call that is about to be sent; its id."""
        held = self._held
        note = Note(
            trace_id("call"),
            held.project,
            held.job_id,
            held.shard_id,
            held.fence,
            route.provider,
            route.upstream_model,
            len(batch.inputs),
            time.time(),
        )
        self._calls[note.call_id] = _Call(note, self._flights.depart(note), batch.indexes[0])
        return note.call_id

    def failed(self, call_id: str, *, ambiguous: bool) -> None:
        """The call brought nothing. An ambiguous one stays noted until it is written down."""
        if ambiguous:
            self._calls[call_id].code = "unanswered"
        else:
            self._flights.arrive(self._calls.pop(call_id).slot)

    def kept(self, parts: Sequence[Landed]) -> None:
        """These results are safe, and so are the calls that brought them."""
        if self._calls:
            safe = {index for part in parts for index in part.indexes}
            for call_id in [
                key for key, call in self._calls.items() if call.first_index in safe and call.code == CUT_OFF
            ]:
                self._flights.arrive(self._calls.pop(call_id).slot)

    def unanswered(self) -> list[Call]:
        """Calls that were sent, for all that is known, and of which nothing was heard again."""
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
            )
            for call in self._calls.values()
        ]

    def clear(self) -> None:
        """All of them are written down."""
        for call in self._calls.values():
            self._flights.arrive(call.slot)
        self._calls.clear()
