"""A part of a file on disk, as a body of a request: read as it is sent, again for each try."""

from __future__ import annotations

import io
import os
from collections.abc import Callable


class FileRange(io.RawIOBase):
    """`size` bytes of an open file from `start` on, with a position of their own. `on_bytes` gets what was read."""

    def __init__(
        self, handle: int, start: int, size: int, on_bytes: Callable[[bytes], None] = lambda data: None
    ) -> None:
        self._handle = handle
        self._start = start
        self._size = size
        self._on_bytes = on_bytes
        self._offset = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size`."""
        left = self._size - self._offset
        data = os.pread(self._handle, left if size < 0 else min(size, left), self._start + self._offset)
        self._offset += len(data)
        self._on_bytes(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        self._offset = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._offset}.get(whence, self._size)
        return self._offset

    def tell(self) -> int:
        """As of any file."""
        return self._offset
