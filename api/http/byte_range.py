"""The header Range of a download: one range of bytes (RFC 9110 §14)."""

from __future__ import annotations

import re
from typing import NamedTuple

from models.file_errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*\Z", re.IGNORECASE | re.ASCII)


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
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":  # the last bytes
        count = int(found[2])
        if count == 0 or size == 0:
            raise _not_satisfiable(size)
        return ByteRange(max(size - count, 0), size, size)
    start, last = int(found[1]), int(found[2] or size - 1)
    if found[2] and last < start:
        return None  # malformed: RFC 9110 §14.1.1
    if start >= size:
        raise _not_satisfiable(size)
    return ByteRange(start, min(last + 1, size), size)


def _not_satisfiable(size: int) -> RangeNotSatisfiable:
    error = RangeNotSatisfiable(f"There are {size} bytes: send a Range that begins within them.", param="range")
    error.size = size
    return error
