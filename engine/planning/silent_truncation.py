"""Detects inputs that an upstream has truncated by itself, from the tokens that it reports. Pure.

Many servers cut what is longer than their model's window, and say nothing. Only what is certain is told: all inputs of
a call are cut to one length, so that the longest ones were cut when the count is less than the least that all can have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.planning import token_estimator, tokens
from models.embedding import Batch, Input

# Below so many bytes a token nothing is checked: a correct count of prose has 4 to 5.
PLAUSIBLE_BYTES_PER_TOKEN = 6
# No tokenizer makes fewer tokens of a text than a 32nd of its bytes; runs of one character, or of space, are one byte.
MAX_BYTES_PER_TOKEN = 32
# So many bytes of a call are counted, on a loop where other callers are, and on one where a shard is alone.
QUICK_BYTES, PATIENT_BYTES = 128 * 1024, 2 * 1024 * 1024
# No model cuts to less; a count that is lower still is a wrong count.
MIN_WINDOW = 64
_RUNS = re.compile(r"(.)\1{3,}|\s+", re.DOTALL)


def cut_upstream(batch: Batch, used: int, *, exact: bool, is_quick: bool = False) -> Sequence[int]:
    """The indexes of the inputs that were surely not embedded whole.

    `used`: the tokens that the upstream reports; `exact`: it counts as we do. What is known of the beginning of a text
    is the least that is known of the whole.
    """
    if batch.bytes <= used * PLAUSIBLE_BYTES_PER_TOKEN:  # nearly all calls
        return ()
    kept = (QUICK_BYTES if is_quick else PATIENT_BYTES) // len(batch.inputs)
    beginnings = [item[:kept] for item in batch.inputs]
    least = [tokens.count(item) if exact else _at_least(item) for item in beginnings]
    window = _window(least, used)
    if window is None or window < MIN_WINDOW:
        return ()
    return [index for index, count in zip(batch.indexes, least, strict=True) if count > window]


def _at_least(item: Input) -> int:
    if isinstance(item, list):
        return len(item)
    return token_estimator.utf8_bytes(_RUNS.sub(" ", item)) // MAX_BYTES_PER_TOKEN


def _window(counts: Sequence[int], used: int) -> int | None:
    """The longest that inputs of so many tokens can have been, when they have `used` together; None: whole."""
    if sum(counts) <= used:
        return None
    left, rest = used, len(counts)
    for count in sorted(counts):
        if count * rest > left:
            return left // rest
        left, rest = left - count, rest - 1
    return None
