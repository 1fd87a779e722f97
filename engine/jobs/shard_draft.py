"""A shard before it is stored: consecutive lines of the corpus and their checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.corpus.lines import ParsedRecords
from models.embedding import Input, InputError

# Most consecutive lines, refused for one reason, in one row of refused_inputs.
MAX_RUN_INPUTS = 65_536


@dataclass(slots=True)
class ShardDraft:
    """The lines of one shard. An input is None where it was refused or duplicates an earlier one.

    `repeated` is the common error of a shard whose lines were all refused; `lines` is empty then, `size` is not.
    """

    first_index: int
    lines: ParsedRecords
    size: int
    tokens: int = 0  # estimated, of the inputs to embed
    duplicates: dict[int, int] = field(
        default_factory=dict
    )  # position in the shard: the job's index of the first occurrence
    duplicate_inputs: list[Input] = field(default_factory=list)  # the inputs that `duplicates` removed
    repeated: InputError | None = None
    packed_inputs: bytes = b""
    packed_ids: bytes | None = None
    truncated: list[int] = field(default_factory=list)  # positions in the shard whose text was shortened
    prefix_hash: bytes = b""  # hash of all lines of the corpus up to the end of this shard

    def __len__(self) -> int:
        return self.size

    @property
    def refused(self) -> int:
        """How many inputs of the shard were refused."""
        return self.size if self.repeated is not None else len(self.lines.errors)
