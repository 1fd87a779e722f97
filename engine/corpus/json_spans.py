"""Where the members and items of a large JSON document lie, found without building a single object of it.

A JSON library decodes a document in one call, which holds the interpreter's lock for as long as it takes: seconds for
32 MiB of `[1],[1],…`, and gigabytes of objects. So a large document is cut first, by its quotes, brackets and commas,
and its items are then decoded some hundred kilobytes at a time. NumPy lets the lock go while it compares bytes.

Nothing is validated here: whoever decodes a piece learns whether it is JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

# Bytes looked at in one step: some milliseconds, and some megabytes of positions at the worst.
BLOCK_BYTES = 256 * 1024
PIECE_BYTES = 256 * 1024
MAX_MEMBERS = 64

_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_DEPTH = np.zeros(256, dtype=np.int8)
_DEPTH[list(b"[{")] = 1
_DEPTH[list(b"]}")] = -1
_STRUCTURAL = np.zeros(256, dtype=np.bool_)
_STRUCTURAL[list(b"[]{},:")] = True
_SPACE = b" \t\r\n"
_SPACES = re.compile(rb"[ \t\r\n]*")

Positions = npt.NDArray[np.int64]


class Malformed(ValueError):
    """The document has no such shape: brackets that do not match, text around it, too many members."""


class DoubleKey(Malformed):
    """The object has a key twice. `key`: as it is written, with its quotes."""

    def __init__(self, key: bytes) -> None:
        super().__init__("a key occurs twice")
        self.key = key


class StructureScanner:
    """Finds brackets, commas and colons outside strings, a block at a time, with the depth after each."""

    def __init__(self) -> None:
        self._in_string = 0
        self._escapes_next = False
        self._depth = 0

    def feed(self, block: npt.NDArray[np.uint8]) -> tuple[Positions, npt.NDArray[np.uint8], Positions]:
        """Positions in the block, the bytes there, and the depth after each of them."""
        quotes = np.flatnonzero(block == _QUOTE)
        escaped = self._escaped(block)
        if len(escaped) and len(quotes):
            quotes = quotes[~np.isin(quotes, escaped, assume_unique=True)]
        found = np.flatnonzero(_STRUCTURAL[block])
        if len(quotes) or self._in_string:
            inside = (np.searchsorted(quotes, found) + self._in_string) & 1
            found = found[inside == 0]
            self._in_string = (self._in_string + len(quotes)) & 1
        characters = block[found]
        depths = np.cumsum(_DEPTH[characters], dtype=np.int64) + self._depth
        if len(depths):
            self._depth = int(depths[-1])
        return found, characters, depths

    def _escaped(self, block: npt.NDArray[np.uint8]) -> Positions:
        """Positions right after an odd number of backslashes."""
        slashes = np.flatnonzero(block == _BACKSLASH)
        if not len(slashes):
            escaped = np.zeros(int(self._escapes_next), dtype=np.int64)
            self._escapes_next = False
            return escaped
        starts = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
        lengths = np.diff(starts, append=len(slashes))
        ends = slashes[starts] + lengths
        odd = (lengths & 1) == 1
        first: Positions = np.zeros(0, dtype=np.int64)
        if self._escapes_next:
            if slashes[0] == 0:
                odd[0] = not odd[0]  # its run began in the block before
            else:
                first = np.zeros(1, dtype=np.int64)
        self._escapes_next = bool(odd[-1] and ends[-1] == len(block))
        return np.concatenate((first, ends[odd]))


def _structure(document: bytes, start: int, stop: int) -> Iterator[tuple[Positions, npt.NDArray[np.uint8], Positions]]:
    scanner = StructureScanner()
    whole = np.frombuffer(document, dtype=np.uint8)
    for low in range(start, stop, BLOCK_BYTES):
        found, characters, depths = scanner.feed(whole[low : min(low + BLOCK_BYTES, stop)])
        yield found + low, characters, depths


def members(document: bytes) -> dict[bytes, tuple[int, int]]:
    """The members of an object: each key as it is written, with its quotes, and the span of its value.

    Raises Malformed, and DoubleKey for a key that is written twice in the same way.
    """
    opening = _skip_space(document, 0)
    if document[opening : opening + 1] != b"{":
        raise Malformed("the document is not an object")
    spans: dict[bytes, tuple[int, int]] = {}
    key: bytes | None = None
    begin = opening + 1
    for positions, characters, depths in _structure(document, opening, len(document)):
        shallow = (depths == 1) & ((characters == _COMMA) | (characters == _COLON)) | (depths < 1)
        for at in np.flatnonzero(shallow)[: 2 * MAX_MEMBERS + 2].tolist():
            position, character, depth = int(positions[at]), int(characters[at]), int(depths[at])
            if depth == 1 and character == _COLON and key is None:
                key = document[begin:position].strip(_SPACE)
            elif (depth == 1 and character == _COMMA) or depth == 0:
                if key is not None:
                    if key in spans:
                        raise DoubleKey(key)
                    spans[key] = (begin, position)
                elif document[begin:position].strip(_SPACE) or spans:
                    raise Malformed("a member has no value")
                key = None
            else:
                raise Malformed("brackets or colons do not match")
            begin = position + 1
            if len(spans) > MAX_MEMBERS:
                raise Malformed("the object has too many members")
            if depth == 0:
                if document[begin:].strip(_SPACE):
                    raise Malformed("text follows the object")
                return spans
    raise Malformed("the object has no end")


def items(document: bytes, start: int, stop: int, *, piece_bytes: int = PIECE_BYTES) -> Iterator[tuple[int, int, int]]:
    """The items of the array that `start` to `stop` holds, as runs: where a run starts, where it stops, how many.

    A run has about `piece_bytes`, or is one longer item. Raises Malformed.
    """
    opening = _skip_space(document, start)
    if document[opening : opening + 1] != b"[":
        raise Malformed("the value is not an array")
    begin, last, count = opening + 1, opening + 1, 0
    for positions, characters, depths in _structure(document, opening, stop):
        ends = positions[((depths == 1) & (characters == _COMMA)) | (depths < 1)]
        closed = bool((depths < 1).any())
        for end, run in _runs(ends, begin, piece_bytes):
            if last > begin and end - begin > piece_bytes:
                yield begin, last - 1, count
                begin, count = last, 0
            last, count = end + 1, count + run
        if closed:
            if document[begin : last - 1].strip(_SPACE):
                yield begin, last - 1, count
            return
    raise Malformed("the array has no end")


def _runs(ends: Positions, begin: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Ends of items, thinned to about eight a piece: each with the number of items since the one before."""
    if not len(ends):
        return
    step = max(1, piece_bytes // 8)
    cells = (ends - begin) // step
    chosen = np.flatnonzero(np.diff(cells, append=cells[-1] + 1))
    before = -1
    for at in chosen.tolist():
        yield int(ends[at]), at - before
        before = at


def count_items(document: bytes, start: int, stop: int, *, limit: int) -> int:
    """How many items the array has; counting ends once there are more than `limit`. Raises Malformed."""
    count = 0
    for _, _, number in items(document, start, stop):
        count += number
        if count > limit:
            break
    return count


def first_byte(document: bytes, start: int, stop: int) -> bytes:
    """The first byte of a value: it says what kind of value it is. Empty where there is none."""
    at = _skip_space(document, start)
    return document[at : at + 1] if at < stop else b""


def _skip_space(document: bytes, at: int) -> int:
    found = _SPACES.match(document, at)
    return found.end() if found else at
