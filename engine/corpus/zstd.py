"""Zstandard streams, unpacked in bounded steps, as engine/corpus/lines.py unpacks gzip."""

from __future__ import annotations

from collections.abc import Iterator

import zstandard

from engine.corpus.lines import RATIO_FREE_BYTES
from models.errors import InvalidInput, PayloadTooLarge

# A block of 128 KiB may take four bytes, so that a step unpacks to at most 16 MiB.
STEP_BYTES = 512
# What HTTP allows (RFC 9659). A larger window would be that much memory for each stream.
MAX_WINDOW_BYTES = 8 * 1024 * 1024


class ZstdDecoder:
    """Unpacks a zstd stream. Frames may follow frames. `what`: the stream, in errors."""

    def __init__(self, *, max_ratio: float = 0.0, what: str = "the body") -> None:
        self._max_ratio = max_ratio
        self._what = what
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed_bytes = self._bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Raises InvalidInput when the stream is not zstd, PayloadTooLarge when it grows beyond the ratio."""
        try:
            for low in range(0, len(chunk), STEP_BYTES):
                packed = chunk[low : low + STEP_BYTES]
                self._packed_bytes += len(packed)
                while packed:
                    if self._frame is None or self._frame.eof:
                        self._frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
                    piece = self._frame.decompress(packed)
                    packed = self._frame.unused_data if self._frame.eof else b""
                    if piece:
                        self._bytes += len(piece)
                        self._check_ratio()
                        yield piece
        except zstandard.ZstdError as error:
            raise InvalidInput(self._fault(str(error)), code="invalid_encoding") from error

    def finish(self) -> None:
        """Raises InvalidInput when the stream ended in the middle of a frame."""
        if self._frame is not None and not self._frame.eof:
            raise InvalidInput(
                f"{self._what} is a zstd stream that is cut off after {self._packed_bytes:,} bytes, before its end: "
                "send all of it",
                code="invalid_encoding",
            )

    def _fault(self, reason: str) -> str:
        if "memory" in reason or "window" in reason.lower():
            return (
                f"{self._what} is packed with a zstd window of more than {MAX_WINDOW_BYTES // 2**20} MiB: "
                "pack it without --long and --ultra"
            )
        if self._bytes:
            return f"{self._what} is damaged behind the first {self._bytes:,} unpacked bytes: pack it anew"
        return f"{self._what} is no zstd stream: pack it, or send it as it is, without Content-Encoding"

    def _check_ratio(self) -> None:
        if self._max_ratio and self._bytes > max(RATIO_FREE_BYTES, self._packed_bytes * self._max_ratio):
            raise PayloadTooLarge(
                f"{self._what} is compressed to less than 1/{self._max_ratio:g} of its size: "
                "send it with less compression",
                code="compression_ratio_too_high",
            )
