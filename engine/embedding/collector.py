"""Collects the outcomes of a run, for callers who want everything at once."""

from __future__ import annotations

from collections.abc import Sequence

from models.embedding import BatchOutcome, InputError, Matrix
from models.errors import EmbedmillError


class OutcomeCollector:
    """An `on_outcome` of an EmbedRun that keeps all outcomes in memory."""

    def __init__(self, count: int, width: int) -> None:
        self._count = count
        self._width = width
        self._outcomes: list[BatchOutcome] = []

    def __call__(self, outcome: BatchOutcome) -> None:
        self._outcomes.append(outcome)

    @property
    def outcomes(self) -> Sequence[BatchOutcome]:
        """In the order in which they came."""
        return self._outcomes

    def first_error(self) -> tuple[int, InputError] | None:
        """The lowest index without a vector, and its error."""
        errors = [(outcome.indexes[0], outcome.error) for outcome in self._outcomes if outcome.error is not None]
        return min(errors, key=lambda pair: pair[0]) if errors else None

    def truncated(self) -> set[int]:
        """Indexes of inputs that were not embedded whole; nearly always none."""
        return {index for outcome in self._outcomes if outcome.truncated for index in outcome.truncated}

    def vectors_in_order(self) -> list[Matrix]:
        """Vectors in input order, as the blocks they came in. Raises EmbedmillError when an input has none."""
        if len(self._outcomes) == 1 and self._outcomes[0].vectors is not None:
            blocks = [self._outcomes[0].vectors]
        else:
            rows: list[Matrix | None] = [None] * self._count
            for outcome in self._outcomes:
                if outcome.vectors is None:
                    continue
                for position, index in enumerate(outcome.indexes):
                    rows[index] = outcome.vectors[position : position + 1]
            blocks = [row for row in rows if row is not None]
        if sum(len(block) for block in blocks) != self._count:
            raise EmbedmillError("The server had an error while processing your request.")
        return blocks
