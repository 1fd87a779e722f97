"""Seen: which inputs of an upload occurred before in it. Exact, and in flat memory however long the upload is.

The latest inputs are in a dict, all older ones in a private file. A filter says of nearly every new input, without a
look into the file, that it is not there.
"""

from __future__ import annotations

import hashlib
import sqlite3
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from models.embedding import Input

MOST_IN_MEMORY = 32_768
ASKED_AT_ONCE = 500
Keys = npt.NDArray[np.int64]
"""Fingerprints as rows of two halves."""

# The file belongs to its connection and goes with it: nobody needs what a crash leaves of it.
_PREPARE = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -4000;
CREATE TABLE seen (key INTEGER PRIMARY KEY, rest INTEGER NOT NULL, first INTEGER NOT NULL);
"""


def fingerprint(item: Input) -> bytes:
    """128 bits that tell inputs apart. A text and an array of token ids are never equal."""
    if isinstance(item, str):
        return hashlib.blake2b(item.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return hashlib.blake2b(array("q", item).tobytes(), digest_size=16, person=b"token ids").digest()


class DuplicateIndex:
    """The inputs of one upload so far, each known by its fingerprint and the index of its first occurrence."""

    def __init__(self, *, most_in_memory: int = MOST_IN_MEMORY) -> None:
        self._most_in_memory = most_in_memory
        self._recent: dict[bytes, int] = {}
        self._file: _File | None = None

    def twins(self, inputs: Sequence[Input | None], first_index: int) -> dict[int, int]:
        """The positions of these neighbours that occurred before, here or earlier, with the index where first.

        None is no input and has no twin. Takes about a microsecond an input, and now and then a tenth of a second.
        """
        return self.twins_of([None if item is None else fingerprint(item) for item in inputs], first_index)

    def twins_of(self, keys: Sequence[bytes | None], first_index: int) -> dict[int, int]:
        """The same for inputs whose fingerprints are at hand."""
        run: dict[bytes, int] = {}
        repeated: list[tuple[int, bytes]] = []
        for position, key in enumerate(keys):
            if key is None:
                continue
            if run.setdefault(key, first_index + position) != first_index + position:
                repeated.append((position, key))
        before = self._before(run)
        twins = {run[key] - first_index: index for key, index in before.items()}
        twins.update((position, before.get(key, run[key])) for position, key in repeated)
        return twins

    def _before(self, run: Mapping[bytes, int]) -> dict[bytes, int]:
        """Those of the run that were known already, with their first index; the others are known from now on."""
        recent = self._recent
        before = {key: recent[key] for key in run.keys() & recent.keys()}
        if self._file is not None:
            before |= self._file.find([key for key in run if key not in before])
        recent.update((key, index) for key, index in run.items() if key not in before)
        if len(recent) > self._most_in_memory:
            self._file = self._file or _File()
            self._file.add(recent)
            self._recent = {}
        return before


class _File:
    """A table of fingerprints on disk, with a filter in front of it."""

    def __init__(self) -> None:
        # Used by one upload at a time, though not always from the same thread.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._connection.executescript(_PREPARE)
        self._filters: list[_Filter] = []

    def add(self, first_of: Mapping[bytes, int]) -> None:
        keys = _rows(first_of)
        if not self._filters or self._filters[-1].is_full:
            self._filters.append(_Filter())
        self._filters[-1].add(keys)
        rows = np.column_stack((keys, np.fromiter(first_of.values(), dtype=np.int64)))
        rows = rows[np.argsort(keys[:, 0])]  # neighbours share a page: in order, each page is written once
        self._connection.execute("BEGIN")
        # Of two keys that agree in their first half the second is not kept: its twins are only not found.
        self._connection.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", rows.tolist())
        self._connection.execute("COMMIT")

    def find(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        rows = _rows(keys)
        maybe = np.zeros(len(rows), dtype=bool)
        for each in self._filters:
            maybe |= each.may_hold(rows)
        positions = np.flatnonzero(maybe).tolist()
        found: dict[bytes, int] = {}
        for low in range(0, len(positions), ASKED_AT_ONCE):
            asked = {int(rows[position, 0]): position for position in positions[low : low + ASKED_AT_ONCE]}
            marks = ",".join("?" * len(asked))
            answer = self._connection.execute(
                f"SELECT key, rest, first FROM seen WHERE key IN ({marks})",  # noqa: S608  # question marks only
                list(asked),
            )
            for key, rest, first in answer:
                if rows[asked[key], 1] == rest:
                    found[keys[asked[key]]] = first
        return found


class _Filter:
    """A Bloom filter of a megabyte: of what it does not hold it says so, but for one key in a thousand."""

    BITS = 1 << 23
    MOST = BITS // 16
    PROBES = 5

    def __init__(self) -> None:
        self._bytes = np.zeros(self.BITS // 8, dtype=np.uint8)
        self._count = 0

    @property
    def is_full(self) -> bool:
        return self._count >= self.MOST

    def add(self, keys: Keys) -> None:
        self._count += len(keys)
        for bit in self._probes(keys):
            np.bitwise_or.at(self._bytes, bit >> 3, np.left_shift(1, bit & 7).astype(np.uint8))

    def may_hold(self, keys: Keys) -> npt.NDArray[np.bool_]:
        held = np.ones(len(keys), dtype=bool)
        for bit in self._probes(keys):
            held &= (self._bytes[bit >> 3] >> (bit & 7).astype(np.uint8)) & 1 == 1
        return held

    def _probes(self, keys: Keys) -> Iterable[Keys]:
        start, step = keys[:, 0], keys[:, 1] | 1
        with np.errstate(over="ignore"):
            return [(start + step * number) & (self.BITS - 1) for number in range(self.PROBES)]


def _rows(keys: Collection[bytes]) -> Keys:
    return np.frombuffer(b"".join(keys), dtype="<i8").astype(np.int64, copy=False).reshape(-1, 2)
