"""Gathered: what lands of a run, for callers who want everything at once."""

from __future__ import annotations

from collections.abc import Sequence

from models.embedding import BatchOutcome, InputError, Matrix
from models.errors import EmbedmillError


class OutcomeCollector:
    """A `landed` for callers who want everything at once: rows in input order, or the first refused input."""

    def __init__(self, count: int, width: int) -> None:
        self._count = count
        self._width = width
        self._parts: list[BatchOutcome] = []

    def __call__(self, landed: BatchOutcome) -> None:
        self._parts.append(landed)

    @property
    def parts(self) -> Sequence[BatchOutcome]:
        return self._parts

    def refused(self) -> tuple[int, InputError] | None:
        """The lowest index without a vector, and why."""
        bad = [(part.indexes[0], part.error) for part in self._parts if part.error is not None]
        return min(bad, key=lambda pair: pair[0]) if bad else None

    def truncated(self) -> set[int]:
        """Inputs that were not embedded whole: nearly always none."""
        return {index for part in self._parts if part.truncated for index in part.truncated}

    def rows(self) -> list[Matrix]:
        """Vectors in input order, as the blocks they came in. Raises when an input has none: never a gap or a guess."""
        if len(self._parts) == 1 and self._parts[0].vectors is not None:
            blocks = [self._parts[0].vectors]
        else:
            rows: list[Matrix | None] = [None] * self._count
            for part in self._parts:
                if part.vectors is None:
                    continue
                for position, index in enumerate(part.indexes):
                    rows[index] = part.vectors[position : position + 1]
            blocks = [row for row in rows if row is not None]
        if sum(len(block) for block in blocks) != self._count:
            raise EmbedmillError("The server had an error while processing your request.")
        return blocks
