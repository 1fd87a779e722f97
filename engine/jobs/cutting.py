"""Cutting: lines of a corpus become shards: checked, each text once, in flat memory. For jobs and for estimates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from engine import planning, tokens
from engine.corpus import Lines
from engine.jobs.seen import Seen
from engine.settings import Settings
from models.embedding import Alias, Input, InputError, Options
from models.errors import InputTooLong, InvalidInput

# Eight upstream calls of the usual 128: enough to keep a slow provider busy from one worker.
FIRST_SHARD_INPUTS = 1024
# Past this many, an event loop has better things to do than to wait.
LOOKED_UP_ASIDE = 256


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller asked for, beside the corpus."""

    alias: Alias
    width: int
    options: Options
    labels: dict[str, Any]
    request_id: str
    max_cost_usd: Decimal | None = None


@dataclass(slots=True)
class Cut:
    """A shard's worth of lines. An input is None where it was refused, and where it is a twin of an earlier one."""

    seq: int
    first_index: int
    lines: Lines
    tokens: int = 0  # estimated; of what must be embedded
    twins: dict[int, int] = field(default_factory=dict)  # position in the shard: the job's index of the first
    twin_inputs: list[Input] = field(default_factory=list)  # what they were

    def __len__(self) -> int:
        return len(self.lines.inputs)


class Cutter:
    """Takes the lines of one corpus in, gives shards out. `usable` counts the inputs that were not refused."""

    def __init__(self, settings: Settings, wanted: Wanted) -> None:
        self._settings = settings
        self._wanted = wanted
        self._accepts_tokens = any(route.accepts_tokens for route in wanted.alias.routes)
        self._waiting = Lines()
        self._waiting_bytes = 0
        self._seen = Seen()
        self._seq = 0
        self._index = 0
        self.usable = 0

    async def feed(self, lines: Lines) -> AsyncIterator[Cut]:
        """The shards that these lines fill."""
        for position, item in enumerate(lines.inputs):
            waiting = self._waiting
            error = lines.errors[position] if item is None else self._check(item)
            if item is None or error is not None:
                waiting.refuse(error or lines.errors[position], lines.ids[position])
            else:
                waiting.add(planning.shortened(item, self._wanted.alias, self._wanted.options), lines.ids[position])
                self._waiting_bytes += len(item) if isinstance(item, str) else len(item) * 4
                self.usable += 1
            if len(waiting.inputs) >= self._shard_inputs() or self._waiting_bytes >= self._settings.shard_bytes:
                yield await self.rest()

    async def rest(self) -> Cut:
        """What waits, as a shard; it may be empty."""
        cut = Cut(self._seq, self._index, self._waiting)
        self._waiting, self._waiting_bytes = Lines(), 0
        self._seq += 1
        self._index += len(cut)
        inputs = cut.lines.inputs
        if len(cut) > LOOKED_UP_ASIDE:
            cut.twins = await asyncio.to_thread(self._seen.twins, inputs, cut.first_index)
        else:
            cut.twins = self._seen.twins(inputs, cut.first_index)
        for position in cut.twins:
            twin, inputs[position] = inputs[position], None
            if twin is not None:
                cut.twin_inputs.append(twin)
        cut.tokens = sum(tokens.estimate(item) for item in inputs if item is not None)
        return cut

    def _check(self, item: Input) -> InputError | None:
        try:
            planning.check(item, self._wanted.alias, self._wanted.options, accepts_tokens=self._accepts_tokens)
        except (InvalidInput, InputTooLong) as error:
            return InputError(error.code, error.message)
        return None

    def _shard_inputs(self) -> int:
        """Shards grow with the job: many small ones let every worker share a small job, few large ones cost less."""
        return min(self._settings.shard_inputs, max(FIRST_SHARD_INPUTS, self._index // 4))
