"""The error for a corpus that is refused as a whole, because none of it could be read for certain."""

from __future__ import annotations

from models.errors import InvalidInput


class UnreadableCorpus(InvalidInput):
    """A table or file of texts that cannot be read for certain. `reason` and `fix`: the two parts of its message."""

    code = "unreadable_corpus"

    def __init__(self, reason: str, fix: str, *, param: str = "input", is_missing_column: bool = False) -> None:
        super().__init__(f"{reason}: {fix}.", param=param)
        self.reason = reason
        self.fix = fix
        self.is_missing_column = is_missing_column
