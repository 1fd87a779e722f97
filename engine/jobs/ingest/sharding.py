"""Sharding: checks the lines of a corpus, removes duplicates and groups them into shards, in bounded memory.

Jobs and dry runs use it. It does not block on I/O other than the deduplication file, and runs in the work threads.
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
from engine.planning import packing, token_estimator
from engine.webhooks.endpoints import WebhookSpec
from models.embedding import Alias, Input, InputError, Options
from models.errors import IdempotencyMismatch, InputTooLong, InvalidInput, PayloadTooLarge

# Eight upstream calls of the default 128 inputs: they keep a slow provider busy from one worker.
FIRST_SHARD_INPUTS = 1024
# So many consecutive lines that are refused for one reason become a shard of their own, and one row of errors.
RUN_INPUTS = 1024
# Memory of an entry of a pending shard beside its text and its id.
ENTRY_BYTES = 64
_PACK = msgspec.msgpack.Encoder()
_NO_KEY = b"\xff" * 16


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A caller's request for a job, without the corpus."""

    alias: Alias
    width: int
    options: Options
    metadata: dict[str, Any]
    request_id: str
    max_cost_usd: Decimal | None = None
    webhook: WebhookSpec | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """The stored beginning of an interrupted upload: number of lines, and their hash."""

    inputs: int
    hash: bytes
    refused: int = 0


class Sharder:
    """Turns the lines of one corpus into shards. `accepted` counts the inputs that were not refused.

    With `stored`, the first lines are only compared with the stored beginning of an interrupted upload.
    `first_index`: the job's index of the first line. `duplicates`: shared with other corpora of the job, whose inputs
    have another `salt` and so are never equal to these.
    """

    def __init__(
        self,
        settings: Settings,
        spec: JobSpec,
        stored: Prefix | None = None,
        *,
        first_index: int = 0,
        duplicates: DuplicateIndex | None = None,
        salt: bytes = b"",
    ) -> None:
        self._settings = settings
        self._spec = spec
        # Nearly every text is so short that its length alone shows that it is valid.
        self._short_chars = spec.alias.max_input_tokens // 4
        self._truncates = spec.options.truncate == "end"
        self._stored_prefix = stored if stored is not None and stored.inputs else None
        self._hash = hashlib.sha256()
        self._duplicates = DuplicateIndex() if duplicates is None else duplicates
        self._salt = salt
        self._first_index = first_index
        self._index = 0  # from `first_index` on
        self._refused = 0
        self.accepted = stored.inputs - stored.refused if stored else 0
        self._begin()

    def _begin(self) -> None:
        self._pending = ParsedRecords()
        self._keys: list[bytes | None] = []
        self._records: list[bytes] = []
        self._truncated: list[int] = []
        self.buffered_bytes = 0

    def feed(self, lines: ParsedRecords) -> Iterator[ShardDraft]:
        """The shards that these lines complete. Raises PayloadTooLarge; IdempotencyMismatch for a different corpus."""
        settings = self._settings
        for position, item in enumerate(lines.inputs):
            if item is None:
                yield from self._refuse(
                    lines.errors[position], lines.ids[position], count=lines.repeats.get(position, 1)
                )
            else:
                self._add(item, lines.ids[position])
            if self._stored_prefix is not None:
                self._compare()
            pending = len(self._pending.inputs)
            if self._index + pending > settings.max_inputs_per_job or self._refused > settings.max_errors_per_job:
                self._check_size()
            if pending >= self._shard_inputs() or self.buffered_bytes >= settings.shard_bytes:
                draft = self._seal()
                if len(draft):
                    yield draft

    def flush(self) -> ShardDraft:
        """The pending lines as a shard, possibly an empty one."""
        return self._seal()

    def end(self) -> ShardDraft:
        """The last shard, possibly empty. Raises IdempotencyMismatch for a corpus shorter than the stored part."""
        draft = self._seal()
        if self._stored_prefix is not None:
            raise _another_corpus(self._stored_prefix)
        return draft

    def _add(self, item: Input, caller_id: str | None) -> None:
        is_short = type(item) is str and 0 < len(item) <= self._short_chars
        error = None if is_short or self._stored_prefix is not None else self._check(item)
        try:
            key = fingerprint(item, self._salt)
        except OverflowError:  # no token id; the check reports it
            key = _NO_KEY
            error = error or InputError("invalid_input", "no token id")
        self._record(key, caller_id)
        if error is not None:
            self._pending.append_error(error, caller_id)
            self._keys.append(None)
            self._refused += 1
        else:
            accepted_input = item
            if self._truncates and not is_short:
                accepted_input = packing.truncate_input(item, self._spec.alias, self._spec.options)
            if len(accepted_input) < len(item):
                self._truncated.append(len(self._pending.inputs))
            self._pending.add(accepted_input, caller_id)
            self._keys.append(key if accepted_input is item else fingerprint(accepted_input, self._salt))
            self.buffered_bytes += packing.weight(accepted_input)
            if self._stored_prefix is None:
                self.accepted += 1
        self.buffered_bytes += ENTRY_BYTES + len(caller_id or "")

    def _refuse(self, error: InputError, caller_id: str | None, *, count: int) -> Iterator[ShardDraft]:
        if count >= RUN_INPUTS:
            yield from self._refuse_run(error, count)
            return
        for _ in range(count):
            self._record(_NO_KEY + error.code.encode(), caller_id)
            self._pending.append_error(error, caller_id)
            self._keys.append(None)
            self.buffered_bytes += ENTRY_BYTES + len(caller_id or "")
            self._compare()
        self._refused += count

    def _refuse_run(self, error: InputError, count: int) -> Iterator[ShardDraft]:
        pending = self._seal()
        if len(pending):
            yield pending
        while count:
            run_size = min(count, MAX_RUN_INPUTS)
            if self._stored_prefix is not None:
                run_size = min(run_size, self._stored_prefix.inputs - self._index)
            record = _NO_KEY + error.code.encode() + b"\0"
            for low in range(0, run_size, RUN_INPUTS):
                self._hash.update(record * min(RUN_INPUTS, run_size - low))
            self._index += run_size
            count -= run_size
            self._refused += run_size
            if self._stored_prefix is not None:
                self._compare_now()
                continue
            # An empty run would become a shard without inputs.
            yield ShardDraft(
                self._first_index + self._index - run_size,
                ParsedRecords(),
                run_size,
                repeated=error,
                packed_inputs=_PACK.encode([]),
                prefix_hash=self._hash.digest(),
            )
            self._check_size()

    def _record(self, key: bytes, caller_id: str | None) -> None:
        self._records.append(key + (caller_id.encode() if caller_id else b"") + b"\0")

    def _compare(self) -> None:
        """Compare the lines with the stored part once its end is reached."""
        if self._stored_prefix is not None and self._index + len(self._records) == self._stored_prefix.inputs:
            self._seal()

    def _compare_now(self) -> None:
        stored = self._stored_prefix
        if stored is None or self._index < stored.inputs:
            return
        if self._index > stored.inputs or self._hash.digest() != stored.hash:
            raise _another_corpus(stored)
        self._stored_prefix = None
        self._refused = stored.refused

    def _seal(self) -> ShardDraft:
        """The pending lines as a shard; an empty one while the lines are only compared with the stored part."""
        lines, keys, truncated = self._pending, self._keys, self._truncated
        self._hash.update(b"".join(self._records))
        first_index = self._first_index + self._index
        draft = ShardDraft(first_index, lines, len(lines.inputs), prefix_hash=self._hash.digest())
        self._index += len(draft)
        duplicates = self._duplicates.find_duplicates_of(keys, draft.first_index)
        self._begin()
        if self._stored_prefix is not None:
            self._compare_now()
            return ShardDraft(first_index, ParsedRecords(), 0, prefix_hash=draft.prefix_hash)
        draft.duplicates, draft.truncated = duplicates, truncated
        inputs = lines.inputs
        for position in draft.duplicates:
            duplicate, inputs[position] = inputs[position], None
            if duplicate is not None:
                draft.duplicate_inputs.append(duplicate)
        draft.tokens = sum(token_estimator.estimate(item) for item in inputs if item is not None)
        # The inputs of a shard in which all are refused are never read.
        draft.packed_inputs = _PACK.encode([] if len(lines.errors) == len(inputs) else inputs)
        if any(caller_id is not None for caller_id in lines.ids):
            draft.packed_ids = _PACK.encode(lines.ids)
        return draft

    def _check_size(self) -> None:
        self._compare()
        count, settings = self._index + len(self._pending.inputs), self._settings
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
            packing.validate_input(item, self._spec.alias, self._spec.options)
        except (InvalidInput, InputTooLong) as error:
            return InputError(error.code, error.message)
        return None

    def _shard_inputs(self) -> int:
        """Shards grow with the job: small ones let all workers share a small job, large ones cost less."""
        return min(self._settings.shard_inputs, max(FIRST_SHARD_INPUTS, self._index // 4))


def _another_corpus(stored: Prefix) -> IdempotencyMismatch:
    return IdempotencyMismatch(
        f"An upload under this Idempotency-Key was cut off after {stored.inputs} inputs, and this body does not begin "
        "with them: send the same corpus again, or use a new key.",
        param="idempotency-key",
    )
