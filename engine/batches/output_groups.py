"""Groups of neighbouring lines of an input file, each with the ranges of indexes of its inputs, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field

from engine.batches.lines import BatchLine, LineFault, line_too_long, parse_batch_line
from engine.batches.output_plan import LinePlanner, PlannedLine, Variant
from engine.batches.reader import FileLine, LineIterator

# Of a group, unless its only line has more.
VECTOR_BYTES = 4 * 1024 * 1024
GROUP_LINES = 1000
Parsed = tuple[FileLine, BatchLine | LineFault]


@dataclass(slots=True)
class LineGroup:
    """Neighbouring lines. `ranges`: by number of the variant, the first index and the one behind the last."""

    lines: list[PlannedLine] = field(default_factory=list)
    ranges: dict[int, tuple[Variant, int, int]] = field(default_factory=dict)
    vector_bytes: int = 0
    last_line: int = 0
    stop: int = 0  # where the next line begins in the file

    def add(self, file_line: FileLine, line: PlannedLine) -> None:
        """The next line."""
        self.lines.append(line)
        self.last_line, self.stop = file_line.number, file_line.stop
        variant = line.variant
        if variant is not None:
            first = self.ranges[variant.number][1] if variant.number in self.ranges else line.first_index
            self.ranges[variant.number] = (variant, first, line.stop)
            self.vector_bytes += (line.stop - line.first_index) * variant.width * 4

    def stored_ranges(self) -> Iterator[tuple[int, int]]:
        """The ranges without inputs that have no shard (yet), from the first index on."""
        for variant, first, stop in self.ranges.values():
            stored_stop = min(stop, variant.first_index + variant.stored)
            if first < stored_stop:
                yield first, stored_stop


def _groups_of(parsed: Iterable[Parsed], planner: LinePlanner, vector_bytes: int) -> Iterator[LineGroup]:
    """When a group is yielded, the planner is where its last line ends."""
    group = LineGroup()
    for file_line, line in parsed:
        group.add(file_line, planner.plan(file_line.number, line))
        if group.vector_bytes >= vector_bytes or len(group.lines) >= GROUP_LINES:
            yield group
            group = LineGroup()
    if group.lines:
        yield group


async def read_groups(
    lines: LineIterator, planner: LinePlanner, *, default_model: str | None, max_line_bytes: int, vector_bytes: int
) -> AsyncIterator[LineGroup]:
    """The groups of the file, of `vector_bytes` each. When one is yielded, the planner is where its last line ends.

    Raises OutputMisaligned, StorageUnavailable, and what reading the file raises.
    """
    too_long = line_too_long(max_line_bytes)

    def parse(found: list[FileLine]) -> list[Parsed]:
        return [(line, too_long if line.data is None else parse_batch_line(line.data, default_model)) for line in found]

    async for parsed in lines.map(parse):
        for group in _groups_of(parsed, planner, vector_bytes):
            yield group
