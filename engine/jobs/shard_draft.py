"""A shard before it is stored: a run of lines of the corpus, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.corpus.lines import ParsedRecords
from models.embedding import Input, InputError

# The longest run of lines refused for one reason that is one row of errors.
MAX_RUN_INPUTS = 65_536


@dataclass(slots=True)
class ShardDraft:
    """A shard's worth of lines. An input is None where it was refused, and where it is a twin of an earlier one.

    `size` differs from the number of lines where the shard is one run of refused ones, `repeated`.
    """

    seq: int
    first_index: int
    lines: ParsedRecords
    size: int
    tokens: int = 0  # estimated; of what must be embedded
    twins: dict[int, int] = field(default_factory=dict)  # position in the shard: the job's index of the first
    twin_inputs: list[Input] = field(default_factory=list)  # what they were
    repeated: InputError | None = None
    packed_inputs: bytes = b""
    packed_ids: bytes | None = None
    truncated: list[int] = field(default_factory=list)  # positions in the shard whose end was cut off
    prefix_hash: bytes = b""  # of all lines of the corpus up to the end of this shard

    def __len__(self) -> int:
        return self.size

    @property
    def refused(self) -> int:
        return self.size if self.repeated is not None else len(self.lines.errors)
