"""Duplicates of a shard as its row stores them: positions, and the first occurrence of each."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_PACK = msgspec.msgpack.Encoder()
_UNPACK = msgspec.msgpack.Decoder(tuple[list[int], list[int]])


def encode(duplicates: Mapping[int, int]) -> bytes | None:
    """Positions and first indexes, as `shard_inputs.duplicates` holds them; None where there are none."""
    return _PACK.encode((list(duplicates), list(duplicates.values()))) if duplicates else None


def decode(data: bytes | None) -> dict[int, int]:
    """Position in the shard: the job's index of the first occurrence."""
    return dict(zip(*_UNPACK.decode(data), strict=True)) if data else {}
