"""Cutting: lines of a corpus become shards: checked, each text once, in flat memory. For jobs and for estimates.

Nothing here waits for anything: it runs in the work threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from engine.config.settings import Settings
from engine.corpus.lines import ParsedRecords
from engine.jobs.ingest.dedup import DuplicateIndex, fingerprint
from engine.jobs.shard_draft import MAX_RUN_INPUTS, ShardDraft
from engine.planning import packing, tokens
from models.embedding import Alias, Input, InputError, Options
from models.errors import IdempotencyMismatch, InputTooLong, InvalidInput, PayloadTooLarge

# Eight upstream calls of the usual 128: enough to keep a slow provider busy from one worker.
FIRST_SHARD_INPUTS = 1024
# A run of lines refused for one reason that is as long as a shard becomes a shard of its own, and is one row of errors.
RUN_INPUTS = 1024
# What an entry of a waiting shard weighs beside its text and its id.
ENTRY_BYTES = 64
_PACK = msgspec.msgpack.Encoder()
_NO_KEY = b"\xff" * 16


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the caller asked for, beside the corpus."""

    alias: Alias
    width: int
    options: Options
    labels: dict[str, Any]
    request_id: str
    max_cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is stored already of a corpus that was cut off: so many lines, in so many shards, with this hash."""

    inputs: int
    shards: int
    hash: bytes
    refused: int = 0


class Sharder:
    """Takes the lines of one corpus in, gives shards out. `usable` counts the inputs that were not refused.

    With `stored`, the lines of a corpus that has come before: they are compared with what is stored, and not cut again.
    """

    def __init__(self, settings: Settings, wanted: JobSpec, stored: Prefix | None = None) -> None:
        self._settings = settings
        self._wanted = wanted
        self._accepts_tokens = any(route.accepts_tokens for route in wanted.alias.routes)
        # Nearly every text is so short that its length alone shows that it is good.
        self._short_chars = wanted.alias.max_input_tokens // 4
        self._may_be_cut = wanted.options.truncate == "end"
        self._stored = stored if stored is not None and stored.inputs else None
        self._hash = hashlib.sha256()
        self._seen = DuplicateIndex()
        self._seq = stored.shards if stored else 0
        self._index = 0
        self._refused = 0
        self.usable = stored.inputs - stored.refused if stored else 0
        self._begin()

    def _begin(self) -> None:
        self._waiting = ParsedRecords()
        self._keys: list[bytes | None] = []
        self._records: list[bytes] = []
        self._truncated: list[int] = []
        self.held_bytes = 0

    def feed(self, lines: ParsedRecords) -> Iterator[ShardDraft]:
        """The shards that these lines fill. Raises PayloadTooLarge, and IdempotencyMismatch for another corpus."""
        settings = self._settings
        for position, item in enumerate(lines.inputs):
            if item is None:
                yield from self._refuse(
                    lines.errors[position], lines.ids[position], count=lines.repeats.get(position, 1)
                )
            else:
                self._take(item, lines.ids[position])
            if self._stored is not None:
                self._compare()
            waiting = len(self._waiting.inputs)
            if self._index + waiting > settings.max_inputs_per_job or self._refused > settings.max_errors_per_job:
                self._check_size()
            if waiting >= self._shard_inputs() or self.held_bytes >= settings.shard_bytes:
                cut = self._seal()
                if len(cut):
                    yield cut

    def rest(self) -> ShardDraft:
        """What waits, as a shard; it may be empty. The corpus has ended, or memory is short."""
        return self._seal()

    def end(self) -> ShardDraft:
        """The last shard; it may be empty. Raises IdempotencyMismatch where the corpus ends before what is stored."""
        cut = self._seal()
        if self._stored is not None:
            raise _another_corpus(self._stored)
        return cut

    def _take(self, item: Input, caller_id: str | None) -> None:
        is_short = type(item) is str and 0 < len(item) <= self._short_chars
        error = None if is_short or self._stored is not None else self._check(item)
        try:
            key = fingerprint(item)
        except OverflowError:  # a number that is no token id, as the check says
            key = _NO_KEY
            error = error or InputError("invalid_input", "no token id")
        self._record(key, caller_id)
        if error is not None:
            self._waiting.append_error(error, caller_id)
            self._keys.append(None)
            self._refused += 1
        else:
            kept = item
            if self._may_be_cut and not is_short:
                kept = packing.truncate_input(item, self._wanted.alias, self._wanted.options)
            if len(kept) < len(item):
                self._truncated.append(len(self._waiting.inputs))
            self._waiting.add(kept, caller_id)
            self._keys.append(key if kept is item else fingerprint(kept))
            self.held_bytes += packing.weight(kept)
            if self._stored is None:
                self.usable += 1
        self.held_bytes += ENTRY_BYTES + len(caller_id or "")

    def _refuse(self, error: InputError, caller_id: str | None, *, count: int) -> Iterator[ShardDraft]:
        if count >= RUN_INPUTS:
            yield from self._refuse_run(error, count)
            return
        for _ in range(count):
            self._record(_NO_KEY + error.code.encode(), caller_id)
            self._waiting.append_error(error, caller_id)
            self._keys.append(None)
            self.held_bytes += ENTRY_BYTES + len(caller_id or "")
            self._compare()
        self._refused += count

    def _refuse_run(self, error: InputError, count: int) -> Iterator[ShardDraft]:
        waiting = self._seal()
        if len(waiting):
            yield waiting
        while count:
            some = min(count, MAX_RUN_INPUTS)
            if self._stored is not None:
                some = min(some, self._stored.inputs - self._index)
            record = _NO_KEY + error.code.encode() + b"\0"
            for low in range(0, some, RUN_INPUTS):
                self._hash.update(record * min(RUN_INPUTS, some - low))
            self._index += some
            count -= some
            self._refused += some
            if self._stored is not None:
                self._compare_now()
                continue
            # A run that is empty would be a shard without inputs.
            yield ShardDraft(
                self._next_seq(),
                self._index - some,
                ParsedRecords(),
                some,
                repeated=error,
                packed_inputs=_PACK.encode([]),
                prefix_hash=self._hash.digest(),
            )
            self._check_size()

    def _record(self, key: bytes, caller_id: str | None) -> None:
        self._records.append(key + (caller_id.encode() if caller_id else b"") + b"\0")

    def _compare(self) -> None:
        """Where the lines have come to the end of what is stored: see that they are the same."""
        if self._stored is not None and self._index + len(self._records) == self._stored.inputs:
            self._seal()

    def _compare_now(self) -> None:
        stored = self._stored
        if stored is None or self._index < stored.inputs:
            return
        if self._index > stored.inputs or self._hash.digest() != stored.hash:
            raise _another_corpus(stored)
        self._stored = None
        self._refused = stored.refused

    def _seal(self) -> ShardDraft:
        """What waits, as a shard. Of a corpus that is being compared nothing is left over: the shard is empty."""
        lines, keys, truncated = self._waiting, self._keys, self._truncated
        self._hash.update(b"".join(self._records))
        cut = ShardDraft(self._seq, self._index, lines, len(lines.inputs), prefix_hash=self._hash.digest())
        self._index += len(cut)
        twins = self._seen.twins_of(keys, cut.first_index)
        self._begin()
        if self._stored is not None:
            self._compare_now()
            return ShardDraft(self._seq, self._index, ParsedRecords(), 0, prefix_hash=cut.prefix_hash)
        cut.twins, cut.truncated = twins, truncated
        inputs = lines.inputs
        for position in cut.twins:
            twin, inputs[position] = inputs[position], None
            if twin is not None:
                cut.twin_inputs.append(twin)
        cut.tokens = sum(tokens.estimate(item) for item in inputs if item is not None)
        # Of a shard in which all is refused nobody asks for the inputs.
        cut.packed_inputs = _PACK.encode([] if len(lines.errors) == len(inputs) else inputs)
        if any(caller_id is not None for caller_id in lines.ids):
            cut.packed_ids = _PACK.encode(lines.ids)
        if len(cut):
            self._next_seq()
        return cut

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq - 1

    def _check_size(self) -> None:
        self._compare()
        count, settings = self._index + len(self._waiting.inputs), self._settings
        if count > settings.max_inputs_per_job:
            raise PayloadTooLarge(
                f"the corpus has more than {settings.max_inputs_per_job} inputs: send it as several jobs",
                param="input",
                code="too_many_inputs",
            )
        if self._refused > settings.max_errors_per_job:
            raise PayloadTooLarge(
                f"more than {settings.max_errors_per_job} inputs of the corpus are no usable inputs: "
                "see the first of them in the job's errors, or send a sample as a dry run",
                param="input",
                code="too_many_errors",
            )

    def _check(self, item: Input) -> InputError | None:
        try:
            packing.validate_input(item, self._wanted.alias, self._wanted.options, accepts_tokens=self._accepts_tokens)
        except (InvalidInput, InputTooLong) as error:
            return InputError(error.code, error.message)
        return None

    def _shard_inputs(self) -> int:
        """Shards grow with the job: many small ones let every worker share a small job, few large ones cost less."""
        return min(self._settings.shard_inputs, max(FIRST_SHARD_INPUTS, self._index // 4))


def _another_corpus(stored: Prefix) -> IdempotencyMismatch:
    return IdempotencyMismatch(
        f"An upload under this Idempotency-Key was cut off after {stored.inputs} inputs, and this body does not begin "
        "with them: send the same corpus again, or use a new key.",
        param="idempotency-key",
    )
