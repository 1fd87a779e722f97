"""The texts that benches embed: 20 words of English, about 130 bytes, all different, the same in every run."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson

_LIST = (
    "queue batch vector gateway token shard worker lease message ledger alias route space model price "
    "limit budget quota answer request number while every other small green paper river because under"
)
WORDS = _LIST.split()


def text_of(number: int) -> str:
    """The text of this number: its words, and the number itself so that no two are alike."""
    words = len(WORDS)
    return " ".join(WORDS[(number * 7 + place * (number % 11 + 1)) % words] for place in range(19)) + f" {number}"


def texts(count: int) -> list[str]:
    """The first `count` texts."""
    return [text_of(number) for number in range(count)]


def write_ndjson(path: Path, count: int, *, compressed: bool = False) -> int:
    """Write the first `count` texts as JSON strings, one a line; returns the bytes before compression."""
    body = b"".join(orjson.dumps(text_of(number), option=orjson.OPT_APPEND_NEWLINE) for number in range(count))
    path.write_bytes(gzip.compress(body, compresslevel=6) if compressed else body)
    return len(body)
