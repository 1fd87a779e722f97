"""Which inputs of its job each line of a batch stands for, and what its lines of output are. Pure.

The inputs of a variant have consecutive indexes, in the order of the file. So one cursor for each variant finds them
again when the file is read from its beginning, and the cursors are all that must be stored to go on in the middle.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.batches.lines import BatchLine, LineFault
from engine.batches.output_lines import LineError, failure_line, share, status_of, success_line
from engine.planning.token_estimator import estimate
from models.embedding import Matrix
from models.errors import EmbedmillError

DUPLICATE = LineError(
    "duplicate_custom_id",
    "Invalid 'custom_id': an earlier line of the file has the same one. Give each request an id of its own.",
    "custom_id",
)


class OutputMisaligned(EmbedmillError):
    """The input file and the inputs of the job do not belong together: no line can be trusted."""

    code = "output_misaligned"


@dataclass(frozen=True, slots=True)
class Variant:
    """The inputs of one model with one set of options. `error`: why its lines cannot run; it then has no inputs."""

    number: int
    key: bytes
    width: int
    first_index: int
    inputs: int
    stored: int  # of its inputs, those that have a shard
    error: LineError | None

    @classmethod
    def of(cls, row: Any) -> Variant:
        """The variant of a row of job_variants."""
        error = None
        if row.error is not None:
            error = LineError(row.error["code"], row.error["message"], row.error["param"], row.error["status"])
        return cls(row.number, bytes(row.key), row.dimensions, row.first_index, row.inputs, row.ingested, error)


@dataclass(frozen=True, slots=True)
class PlannedLine:
    """A line of the input file. `request` has the inputs `first_index` and following; None: `error` says why not."""

    number: int
    custom_id: str | None
    request: BatchLine | None = None
    variant: Variant | None = None
    first_index: int = 0
    error: LineError | None = None

    @property
    def stop(self) -> int:
        """The index behind its last input."""
        return self.first_index + (0 if self.request is None else len(self.request.inputs))

    def weight(self) -> int:
        """Estimated tokens of its inputs."""
        return 0 if self.request is None else sum(map(estimate, self.request.inputs))


@dataclass(slots=True)
class Outcomes:
    """What became of inputs, by the job's index. An index without a vector and an error has no outcome yet."""

    vectors: dict[int, Matrix] = field(default_factory=dict)
    errors: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)


class LinePlanner:
    """Plans the lines of one file, in order. `cursors`: the next index of each variant, to go on in the middle."""

    def __init__(
        self, variants: Sequence[Variant], duplicate_lines: Sequence[int], cursors: Sequence[int] | None = None
    ) -> None:
        self._by_key = {variant.key: position for position, variant in enumerate(variants)}
        self._variants = variants
        self._duplicate_lines = duplicate_lines
        self.cursors = [variant.first_index for variant in variants] if cursors is None else list(cursors)

    def plan(self, number: int, line: BatchLine | LineFault) -> PlannedLine:
        """The next line. Raises OutputMisaligned."""
        if isinstance(line, LineFault):
            return PlannedLine(
                number, line.custom_id, error=LineError(line.code, line.message, line.param, line.status)
            )
        at = bisect_left(self._duplicate_lines, number)
        if at < len(self._duplicate_lines) and self._duplicate_lines[at] == number:
            return PlannedLine(number, line.custom_id, error=DUPLICATE)
        position = self._by_key.get(line.options_key)
        if position is None:
            raise OutputMisaligned(f"line {number} of the input file has options that its validation did not see")
        variant = self._variants[position]
        if variant.error is not None:
            return PlannedLine(number, line.custom_id, error=variant.error)
        first = self.cursors[position]
        self.cursors[position] = stop = first + len(line.inputs)
        if stop > variant.first_index + variant.inputs:
            raise OutputMisaligned(f"line {number} of the input file has inputs that its validation did not see")
        return PlannedLine(number, line.custom_id, line, variant, first)

    def check_end(self) -> None:
        """Called at the end of the file. Raises OutputMisaligned when inputs are left over."""
        for variant, cursor in zip(self._variants, self.cursors, strict=True):
            if cursor != variant.first_index + variant.inputs:
                raise OutputMisaligned(
                    f"the input file has {cursor - variant.first_index} inputs of variant {variant.number}, and its "
                    f"validation saw {variant.inputs}"
                )


@dataclass(frozen=True, slots=True)
class Usage:
    """What the job was billed, shared among the lines with embeddings by their weights. `total_weight` 0: estimates."""

    tokens: int
    total_weight: int

    def share(self, weight_before: int, weight: int) -> int:
        """The tokens of a line."""
        return share(self.tokens, weight_before, weight, self.total_weight) if self.total_weight else weight


@dataclass(slots=True)
class Rendered:
    """Lines of output in the order of the file: each with the number of its line, and whether it has embeddings."""

    lines: list[tuple[int, bool, bytes]] = field(default_factory=list)
    weight: int = 0  # of all lines with embeddings so far

    def of_file(self, *, has_embeddings: bool) -> list[bytes]:
        """The lines of the output file, or of the error file."""
        return [text for _, success, text in self.lines if success is has_embeddings]


def render(
    batch_id: str,
    lines: Iterable[PlannedLine],
    outcomes: Outcomes,
    usage: Usage,
    *,
    weight_before: int = 0,
    not_run: LineError | None = None,
) -> Rendered:
    """The lines of output of these lines. Lines that have no outcome fail with `not_run`; None: they are left out."""
    rendered = Rendered(weight=weight_before)
    for line in lines:
        error = line.error or _error_of(line, outcomes)
        rows: list[Matrix] = []
        request = line.request
        if error is None and request is not None:
            found = [outcomes.vectors.get(index) for index in range(line.first_index, line.stop)]
            rows = [row for row in found if row is not None]
            if len(rows) < len(found):
                error = not_run
                if error is None:
                    continue
        if error is not None or request is None:
            assert error is not None
            rendered.lines.append((line.number, False, failure_line(batch_id, line.number, line.custom_id, error)))
            continue
        truncated: Set[int] = frozenset()
        if outcomes.truncated:
            truncated = {i - line.first_index for i in range(line.first_index, line.stop) if i in outcomes.truncated}
        weight = line.weight()
        text = success_line(
            batch_id,
            line.number,
            request.custom_id,
            request.model,
            rows,
            base64=request.encoding == "base64",
            tokens=usage.share(rendered.weight, weight),
            truncated=truncated,
        )
        rendered.weight += weight
        rendered.lines.append((line.number, True, text))
    return rendered


def _error_of(line: PlannedLine, outcomes: Outcomes) -> LineError | None:
    """The error of the first of its inputs that has one."""
    if not outcomes.errors or line.request is None:
        return None
    for position, index in enumerate(range(line.first_index, line.stop)):
        error = outcomes.errors.get(index)
        if error is not None:
            param = f"input[{position}]" if line.request.is_list else "input"
            message = f"Invalid '{param}': {error['message']}" if line.request.is_list else error["message"]
            return LineError(error["code"], message, param, status_of(error["code"]))
    return None


def decode_lines(packed: bytes | None) -> Sequence[int]:
    """Numbers of lines, ascending, from zlib over little-endian int64."""
    lines = np.frombuffer(b"" if packed is None else zlib.decompress(packed), dtype="<i8")
    return array("q", np.sort(lines).tobytes())
