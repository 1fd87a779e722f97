"""The calls of one run: what became of each, from before it is sent until it is durable.

sent → answered → durable: its outcomes are in the database or in the spool. Such a call is no longer known here.
sent → not billed: it was refused, or never left. It is no longer known here either.
sent → without result: wasted, or its answer is unknown. It is known until it is in the ledger.

The call journal holds every call that is known here, in case the process is killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from engine.durability.call_journal import CallJournal, InFlightCall
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import calls_without_results
from engine.ledger.call_cost import max_cost_of
from engine.observability.route_metrics import CUT_OFF
from engine.storage.database import DATABASE_ERRORS, Database
from models.base import random_id
from models.embedding import Batch, BatchOutcome, Call, Route


@dataclass(slots=True)
class _RunCall:
    entry: InFlightCall
    slot: int | None
    first_index: int
    without_result: Call | None = None


class RunCalls:
    """The calls of one run that are in flight, not durable, or without result and not in the ledger yet."""

    def __init__(self, journal: CallJournal, shard: ClaimedShard) -> None:
        self._journal = journal
        self._shard = shard
        self._calls: dict[str, _RunCall] = {}

    @property
    def inputs(self) -> int:
        """The number of inputs of these calls."""
        return sum(call.entry.inputs for call in self._calls.values())

    def sending(self, batch: Batch, route: Route) -> str:
        """Add a call that is about to be sent. Returns its id."""
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
            usd_per_million_tokens=route.usd_per_million_tokens,
        )
        self._calls[entry.call_id] = _RunCall(entry, self._journal.begin(entry), batch.indexes[0])
        return entry.call_id

    def failed(self, call_id: str, billed: Call | None) -> None:
        """The call has no result. `billed`: the call with its cost where it was billed, or may have been."""
        if billed is None:
            self._remove([call_id])
        elif call_id in self._calls:  # else the run has ended and recorded it meanwhile
            self._calls[call_id].without_result = billed

    def recording(self, parts: Sequence[BatchOutcome], record_id: str) -> None:
        """Add the record id of outcomes to the journal, so that another process can tell whether they were recorded."""
        for call_id in self._calls_of(parts):
            call = self._calls[call_id]
            call.entry = msgspec.structs.replace(call.entry, record_id=record_id)
            self._journal.renew(call.slot, call.entry)

    def mark_durable(self, parts: Sequence[BatchOutcome]) -> None:
        """The outcomes are in the database or in the spool."""
        self._remove(self._calls_of(parts))

    def _calls_of(self, parts: Sequence[BatchOutcome]) -> list[str]:
        """The ids of the calls that returned these outcomes."""
        if not self._calls:
            return []
        indexes = {index for part in parts for index in part.indexes}
        return [key for key, call in self._calls.items() if call.first_index in indexes and call.without_result is None]

    def without_results(self) -> list[Call]:
        """The wasted and unanswered calls that are not in the ledger yet. Safe in any thread."""
        return [call.without_result for call in list(self._calls.values()) if call.without_result is not None]

    def mark_recorded(self, calls: Iterable[Call]) -> None:
        """These calls without results are in the ledger."""
        self._remove([call.id for call in calls])

    async def record_rest(self, database: Database) -> None:
        """Record all calls that are left when the run has ended: what has no result by then is unanswered.

        While the database is unavailable they stay in the journal, for the process that reads it next.
        """
        left = [
            call.without_result or calls_without_results.unanswered(call.entry, CUT_OFF, ended_at=time.time())
            for call in self._calls.values()
        ]
        if left:
            try:
                async with database.write() as connection:
                    new = await calls_without_results.insert_run_calls(database, connection, self._shard, left)
            except DATABASE_ERRORS:
                return
            # The others ended in an error and were counted with it.
            calls_without_results.count_unanswered(call for call in new if call.error == CUT_OFF)
        self._remove(list(self._calls))

    def _remove(self, call_ids: Iterable[str]) -> None:
        for call_id in call_ids:
            if (call := self._calls.pop(call_id, None)) is not None:
                self._journal.end(call.slot)
