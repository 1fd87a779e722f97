"""Deduplication: finds inputs that occurred before in the same upload, in bounded memory.

Recent inputs are kept in a dict, older ones in a temporary SQLite file. A Bloom filter rules out nearly every new input
without a query of the file.
"""

from __future__ import annotations

import hashlib
import sqlite3
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from models.embedding import Input

MAX_IN_MEMORY = 32_768
KEYS_PER_QUERY = 500
Keys = npt.NDArray[np.int64]
"""Fingerprints as rows of two 64-bit halves: shape (n, 2)."""

# The file is removed with its connection, so it needs no durability.
_PREPARE = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -4000;
CREATE TABLE seen (key INTEGER PRIMARY KEY, rest INTEGER NOT NULL, first INTEGER NOT NULL);
"""


def fingerprint(item: Input, salt: bytes = b"") -> bytes:
    """128-bit hash of an input. A text and an array of token ids have different hashes. Raises OverflowError.

    `salt`, of up to 16 bytes: inputs with different ones never count as equal.
    """
    if isinstance(item, str):
        return hashlib.blake2b(item.encode("utf-8", "surrogatepass"), digest_size=16, salt=salt).digest()
    return hashlib.blake2b(array("q", item).tobytes(), digest_size=16, salt=salt, person=b"token ids").digest()


class DuplicateIndex:
    """Fingerprints of the inputs of one upload so far, each with the index of its first occurrence."""

    def __init__(self, *, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._max_in_memory = max_in_memory
        self._recent: dict[bytes, int] = {}
        self._file: _SqliteIndex | None = None

    def find_duplicates(self, inputs: Sequence[Input | None], first_index: int) -> dict[int, int]:
        """By position of each duplicate among these consecutive inputs: the index of its first occurrence.

        None stands for a refused input. Takes about a microsecond per input, and occasionally a tenth of a second.
        """
        return self.find_duplicates_of([None if item is None else fingerprint(item) for item in inputs], first_index)

    def find_duplicates_of(self, keys: Sequence[bytes | None], first_index: int) -> dict[int, int]:
        """find_duplicates() for fingerprints."""
        run: dict[bytes, int] = {}
        repeated: list[tuple[int, bytes]] = []
        for position, key in enumerate(keys):
            if key is None:
                continue
            if run.setdefault(key, first_index + position) != first_index + position:
                repeated.append((position, key))
        known = self._known(run)
        duplicates = {run[key] - first_index: index for key, index in known.items()}
        duplicates.update((position, known.get(key, run[key])) for position, key in repeated)
        return duplicates

    def _known(self, run: Mapping[bytes, int]) -> dict[bytes, int]:
        """The first indexes of those that occurred before the run; adds the others to the index."""
        recent = self._recent
        known = {key: recent[key] for key in run.keys() & recent.keys()}
        if self._file is not None:
            known |= self._file.find([key for key in run if key not in known])
        recent.update((key, index) for key, index in run.items() if key not in known)
        if len(recent) > self._max_in_memory:
            self._file = self._file or _SqliteIndex()
            self._file.add(recent)
            self._recent = {}
        return known


class _SqliteIndex:
    """A table of fingerprints on disk behind Bloom filters."""

    def __init__(self) -> None:
        # One upload uses it from several threads, but never concurrently.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._connection.executescript(_PREPARE)
        self._filters: list[_BloomFilter] = []

    def add(self, first_of: Mapping[bytes, int]) -> None:
        keys = _rows(first_of)
        if not self._filters or self._filters[-1].is_full:
            self._filters.append(_BloomFilter())
        self._filters[-1].add(keys)
        rows = np.column_stack((keys, np.fromiter(first_of.values(), dtype=np.int64)))
        rows = rows[np.argsort(keys[:, 0])]  # in key order each page is written once
        self._connection.execute("BEGIN")
        # A key with the same first half as a stored one is not kept: its duplicates are not found, which is harmless.
        self._connection.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", rows.tolist())
        self._connection.execute("COMMIT")

    def find(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        rows = _rows(keys)
        may_hold = np.zeros(len(rows), dtype=bool)
        for each in self._filters:
            may_hold |= each.may_hold(rows)
        positions = np.flatnonzero(may_hold).tolist()
        found: dict[bytes, int] = {}
        for low in range(0, len(positions), KEYS_PER_QUERY):
            position_of = {int(rows[position, 0]): position for position in positions[low : low + KEYS_PER_QUERY]}
            marks = ",".join("?" * len(position_of))
            rows_found = self._connection.execute(
                f"SELECT key, rest, first FROM seen WHERE key IN ({marks})",  # noqa: S608  # question marks only
                list(position_of),
            )
            for key, rest, first in rows_found:
                if rows[position_of[key], 1] == rest:
                    found[keys[position_of[key]]] = first
        return found


class _BloomFilter:
    """A Bloom filter of one megabyte with a false-positive rate of about 0.1 %."""

    BITS = 1 << 23
    MAX_KEYS = BITS // 16
    PROBES = 5

    def __init__(self) -> None:
        self._bytes = np.zeros(self.BITS // 8, dtype=np.uint8)
        self._count = 0

    @property
    def is_full(self) -> bool:
        return self._count >= self.MAX_KEYS

    def add(self, keys: Keys) -> None:
        self._count += len(keys)
        for bit in self._probes(keys):
            np.bitwise_or.at(self._bytes, bit >> 3, np.left_shift(1, bit & 7).astype(np.uint8))

    def may_hold(self, keys: Keys) -> npt.NDArray[np.bool_]:
        may_hold = np.ones(len(keys), dtype=bool)
        for bit in self._probes(keys):
            may_hold &= (self._bytes[bit >> 3] >> (bit & 7).astype(np.uint8)) & 1 == 1
        return may_hold

    def _probes(self, keys: Keys) -> Iterable[Keys]:
        start, step = keys[:, 0], keys[:, 1] | 1
        with np.errstate(over="ignore"):
            return [(start + step * number) & (self.BITS - 1) for number in range(self.PROBES)]


def _rows(keys: Collection[bytes]) -> Keys:
    return np.frombuffer(b"".join(keys), dtype="<i8").astype(np.int64, copy=False).reshape(-1, 2)
