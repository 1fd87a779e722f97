"""The header Range of a download: one range of bytes (RFC 9110 §14)."""

from __future__ import annotations

import re
from typing import NamedTuple

from models.file_errors import RangeNotSatisfiable

# White space before a number is one group, so that a long header that does not match is known in one pass.
_RANGE = re.compile(r"bytes\s*=\s*(?:(\d+)\s*)?-\s*(?:(\d+)\s*)?\Z", re.IGNORECASE | re.ASCII)
# A number with more digits is beyond any file: it stands for 10 ** MAX_DIGITS, as reading it takes too long.
MAX_DIGITS = 18


class ByteRange(NamedTuple):
    """The bytes `start..stop` of what has `size` bytes."""

    start: int
    stop: int
    size: int

    @property
    def content_range(self) -> str:
        """The header Content-Range."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def requested_range(header: str, size: int) -> ByteRange | None:
    """The range that a caller wants; None: all, also where the header is malformed, or names several ranges.

    Raises RangeNotSatisfiable.
    """
    found = _RANGE.match(header.strip())
    if found is None or found[1] == found[2] is None:
        return None
    if found[1] is None:  # the last bytes
        count = _number(found[2])
        if count == 0 or size == 0:
            raise _not_satisfiable(size)
        return ByteRange(max(size - count, 0), size, size)
    if found[2] is not None and _order(found[2]) < _order(found[1]):
        return None  # malformed: RFC 9110 §14.1.1
    start, last = _number(found[1]), size - 1 if found[2] is None else _number(found[2])
    if start >= size:
        raise _not_satisfiable(size)
    return ByteRange(start, min(last + 1, size), size)


def _order(digits: str) -> tuple[int, str]:
    """A key that sorts digits as the numbers that they stand for."""
    short = digits.lstrip("0")
    return len(short), short


def _number(digits: str) -> int:
    length, short = _order(digits)
    return int(short or "0") if length <= MAX_DIGITS else 10**MAX_DIGITS


def _not_satisfiable(size: int) -> RangeNotSatisfiable:
    error = RangeNotSatisfiable(f"There are {size} bytes: send a Range that begins within them.", param="range")
    error.size = size
    return error
