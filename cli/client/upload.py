"""Lines on their way to the server: joined into writes of a useful size, packed where the network is worth it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

CHUNK_BYTES = 64 * 1024


def chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of about 64 KiB."""
    buffer: list[bytes] = []
    buffered_bytes = 0
    for line in lines:
        buffer.append(line)
        buffered_bytes += len(line)
        if buffered_bytes >= CHUNK_BYTES:
            yield b"".join(buffer)
            buffer, buffered_bytes = [], 0
    if buffer:
        yield b"".join(buffer)


def gzipped(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes as one gzip stream; equal parts give an equal stream, so that a resend is the same body."""
    compressor = zlib.compressobj(level=1, wbits=31)  # 31: gzip's framing, with no timestamp in it
    for part in parts:
        if compressed := compressor.compress(part):
            yield compressed
    yield compressor.flush()
