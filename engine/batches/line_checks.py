"""The checks of a batch's lines: one pass over all of them, and a second one where ids may be repeated. Pure."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.batches.custom_ids import CustomIdDigests, CustomIdHashes, Numbers, are_among
from engine.batches.lines import BatchLine, LineFault, line_too_long, parse_batch_line
from engine.batches.reader import FileLine
from models.embedding import Alias, Options

MAX_LISTED_ERRORS = 1000
MAX_VARIANTS = 1000
# Lines that the second look compares: it needs a hundred bytes for each.
MAX_COMPARED_LINES = 250_000


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The model and the options that lines with one options_key run with."""

    alias: Alias
    width: int
    options: Options


@dataclass(slots=True)
class VariantDraft:
    """The lines with one options_key. `model` is None where they cannot run, and `fault` says why.

    `request`: the first of them.
    """

    number: int
    key: bytes
    request: BatchLine
    model: ChosenModel | None
    fault: LineFault | None
    lines: int = 0
    inputs: int = 0


@dataclass(slots=True)
class LineErrors:
    """Errors of lines: the first ones, by line, and how many there are."""

    count: int = 0
    listed: list[tuple[int, LineFault]] = field(default_factory=list)

    def add(self, number: int, fault: LineFault) -> None:
        """Add an error. Lines come in ascending order."""
        self.count += 1
        if len(self.listed) < MAX_LISTED_ERRORS:
            self.listed.append((number, fault))

    def merged(self, other: LineErrors) -> list[tuple[int, LineFault]]:
        """The first ones of both, by line."""
        return list(heapq.merge(self.listed, other.listed, key=lambda each: each[0]))[:MAX_LISTED_ERRORS]


class LineChecks:
    """The first look at all lines. `choose` says which model lines run with; it returns the fault where there is none.

    `errors`: of lines that fail a strict batch. `refused`: lines that cannot run, those with errors among them.
    """

    def __init__(
        self,
        choose: Callable[[BatchLine], ChosenModel | LineFault],
        *,
        default_model: str | None,
        max_line_bytes: int,
    ) -> None:
        self._choose = choose
        self._default_model = default_model
        self._too_long = line_too_long(max_line_bytes)
        self.variants: dict[bytes, VariantDraft] = {}
        self.has_too_many_variants = False
        self.errors = LineErrors()
        self.total = 0
        self.refused = 0
        self.hashes = CustomIdHashes()
        self._user: str | None = None
        self._has_request = False
        self.users_differ = False

    @property
    def user(self) -> str | None:
        """The user that all requests name; None where they differ."""
        return None if self.users_differ else self._user

    def read(self, lines: Sequence[FileLine]) -> None:
        """Check the next lines."""
        variants, default_model, add_hash = self.variants, self._default_model, self.hashes.add_hash
        self.total += len(lines)
        for number, _, _, data in lines:
            parsed = self._too_long if data is None else parse_batch_line(data, default_model)
            if parsed.custom_id is not None:
                add_hash(hash(parsed.custom_id))
            if type(parsed) is not BatchLine:
                self._refuse(number, parsed)  # type: ignore[arg-type]
                continue
            variant = variants.get(parsed.options_key) or self._add_variant(parsed)
            variant.lines += 1
            if variant.fault is not None:
                self._refuse(number, variant.fault)
                continue
            if parsed.user != self._user:
                self._note_user(parsed.user)
            self._has_request = True
            variant.inputs += len(parsed.inputs)

    def parse(self, line: FileLine) -> BatchLine | LineFault:
        """The request of a line, or its fault."""
        return self._too_long if line.data is None else parse_batch_line(line.data, self._default_model)

    def _note_user(self, user: str | None) -> None:
        if self._has_request:
            self.users_differ = True
        else:
            self._user = user

    def _refuse(self, number: int, fault: LineFault) -> None:
        self.refused += 1
        if fault.is_invalid_request_line:
            self.errors.add(number, fault)

    def _add_variant(self, line: BatchLine) -> VariantDraft:
        chosen = self._choose(line)
        model, fault = (None, chosen) if isinstance(chosen, LineFault) else (chosen, None)
        variant = VariantDraft(len(self.variants), line.options_key, line, model, fault)
        if len(self.variants) < MAX_VARIANTS:
            self.variants[line.options_key] = variant
        else:
            self.has_too_many_variants = True
        return variant


class RepeatedIds:
    """The second look: at the lines whose id has a hash that occurs more than once, which `repeated` lists.

    It ends after MAX_COMPARED_LINES of them. Then `is_full`, and further repetitions are known by their hashes alone.
    """

    def __init__(self, checks: LineChecks, repeated: Numbers) -> None:
        self._checks = checks
        self._repeated = repeated
        self._digests = CustomIdDigests()
        self._numbers = array("q")
        # Of each line: the variant that it was counted in, and its inputs. -1: it was refused.
        self._variants = array("q")
        self._inputs = array("q")

    @property
    def is_full(self) -> bool:
        """Further lines are not looked at."""
        return len(self._digests) >= MAX_COMPARED_LINES

    def read(self, lines: Sequence[FileLine]) -> None:
        """Look at the next lines of the same file, from its beginning."""
        parsed = [(line.number, self._checks.parse(line)) for line in lines]
        known = [(number, each, each.custom_id) for number, each in parsed if each.custom_id is not None]
        for position in are_among([custom_id for _, _, custom_id in known], self._repeated):
            number, line, custom_id = known[position]
            variant = self._checks.variants.get(line.options_key) if isinstance(line, BatchLine) else None
            self._digests.add(custom_id)
            self._numbers.append(number)
            self._variants.append(-1 if variant is None or variant.fault is not None else variant.number)
            self._inputs.append(len(line.inputs) if isinstance(line, BatchLine) else 0)

    def finish(self) -> tuple[Numbers, LineErrors]:
        """Numbers of the lines that repeat an id, and their errors. They are taken out of their variants."""
        again, first = self._digests.repetitions()
        numbers = np.frombuffer(self._numbers, dtype=np.int64)
        errors = LineErrors(count=self._checks.hashes.repetitions if self.is_full else len(again))
        for line, earlier in zip(again[:MAX_LISTED_ERRORS].tolist(), first[:MAX_LISTED_ERRORS].tolist(), strict=True):
            message = (
                f"The custom_id of this request was used before, in line {int(numbers[earlier])}: "
                "each custom_id must be unique in a batch."
            )
            errors.listed.append((int(numbers[line]), LineFault("duplicate_custom_id", message, "custom_id")))
        variants = np.frombuffer(self._variants, dtype=np.int64)[again]
        inputs = np.frombuffer(self._inputs, dtype=np.int64)[again]
        self._checks.refused += int(np.count_nonzero(variants >= 0))
        for variant in self._checks.variants.values():
            repeats = variants == variant.number
            variant.lines -= int(np.count_nonzero(repeats))
            variant.inputs -= int(inputs[repeats].sum())
        return numbers[again], errors


def errors_as_json(errors: Iterable[tuple[int | None, LineFault]]) -> list[dict[str, Any]]:
    """Errors as a batch keeps and shows them."""
    return [{"code": fault.code, "message": fault.message, "param": fault.param, "line": n} for n, fault in errors]
