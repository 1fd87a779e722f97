"""Codec of shard_inputs.duplicates: positions in the shard, and the job's index of each first occurrence."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_PACK = msgspec.msgpack.Encoder()
_UNPACK = msgspec.msgpack.Decoder(tuple[list[int], list[int]])


def encode(duplicates: Mapping[int, int]) -> bytes | None:
    """Two msgpack lists, positions and first indexes; None without duplicates."""
    return _PACK.encode((list(duplicates), list(duplicates.values()))) if duplicates else None


def decode(data: bytes | None) -> dict[int, int]:
    """By position in the shard: the job's index of the first occurrence."""
    return dict(zip(*_UNPACK.decode(data), strict=True)) if data else {}
