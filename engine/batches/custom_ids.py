"""Finds lines that repeat a custom_id, exactly, with 8 bytes of memory a line.

The first look keeps a 64-bit hash of each id. Only where hashes occur twice is there a second look, at those lines
alone, which compares 128 bits. The hashes are those of this process, so that nobody can choose ids that collide.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
DIGEST_BYTES = 16


class CustomIdHashes:
    """The first look: the hashes of all ids."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self.repetitions = 0  # hashes that occurred before; known once `repeated` was called
        self.add_hash = self._hashes.append  # of hash(custom_id): called for each line

    def repeated(self) -> Numbers:
        """The hashes that occur more than once, ascending; for most files none. Ends the look."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        hashes.sort()
        again = hashes[1:][hashes[1:] == hashes[:-1]]
        self.repetitions = len(again)
        return np.unique(again)


class CustomIdDigests:
    """The ids of some lines, or of all: which lines repeat the id of an earlier one."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._digests = bytearray()

    def __len__(self) -> int:
        return len(self._digests) // DIGEST_BYTES

    def add(self, custom_id: str) -> None:
        """Add the id of the next line."""
        self._digests += blake2b(custom_id.encode(), digest_size=DIGEST_BYTES, key=self._key).digest()

    def repetitions(self) -> tuple[Numbers, Numbers]:
        """Positions of the lines that repeat an id, ascending, and of the line that had it first."""
        count = len(self)
        halves = np.frombuffer(bytes(self._digests), dtype=np.int64).reshape(count, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: lines with one id stay in their order
        ordered = halves[order]
        is_first = np.ones(count, dtype=np.bool_)
        is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        firsts = order[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]] if count else order
        again, first = order[~is_first], firsts[~is_first]
        ascending = np.argsort(again)
        return again[ascending].astype(np.int64), first[ascending].astype(np.int64)


def are_among(custom_ids: Sequence[str], repeated: Numbers) -> list[int]:
    """Positions of the ids whose hashes are among these."""
    hashes = np.fromiter(map(hash, custom_ids), dtype=np.int64, count=len(custom_ids))
    at = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
    found: list[int] = np.flatnonzero(repeated[at] == hashes).tolist()
    return found
