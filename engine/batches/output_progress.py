"""Progress of the output step: where it goes on after a crash. Stored with each part that it has written."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class OutputProgress(msgspec.Struct):
    """First the step surveys the file: counts, and the weights that usage is shared by. Then it writes the lines.

    `offset`, `line`, `cursors`: where the stage goes on. `weight`: of the lines with embeddings so far.
    """

    stage: Literal["survey", "write"] = "survey"
    offset: int = 0
    line: int = 0
    cursors: list[int] | None = None
    weight: int = 0
    completed: int = 0
    failed: int = 0
    # Results of the survey. `not_run`: of the failed lines, those that the end of the job left without an outcome.
    not_run: int = 0
    total_weight: int = 0
    tokens: int = 0
    surveyed: tuple[int, int] = (0, 0)  # completed, failed
    # Parts that belong to the batch.
    output_parts: int = 0
    error_parts: int = 0

    @classmethod
    def of(cls, stored: dict[str, Any]) -> OutputProgress:
        """The progress as it was stored."""
        return msgspec.convert(stored, cls)

    def to_store(self) -> dict[str, Any]:
        """The progress as JSON."""
        stored: dict[str, Any] = msgspec.to_builtins(self)
        return stored

    def begin_writing(self, tokens: int) -> None:
        """The survey has ended; `tokens`: what the job was billed."""
        self.stage, self.offset, self.line, self.cursors = "write", 0, 0, None
        self.tokens, self.total_weight, self.surveyed = tokens, self.weight, (self.completed, self.failed)
        self.weight = self.completed = self.failed = 0

    def matches_survey(self) -> bool:
        """True when the lines that were written are those that the survey saw."""
        return (self.completed, self.failed) == self.surveyed and self.weight == self.total_weight
