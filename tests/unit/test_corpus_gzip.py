"""Compressed corpora: inflated in bounded steps, whole or not at all."""

from __future__ import annotations

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpus.lines import GZIP_STEP_BYTES, ByteLimit, GzipDecoder, IdentityDecoder
from models.errors import InvalidInput, PayloadTooLarge


def inflate(body: bytes, cuts: list[int]) -> bytes:
    decoder, read = GzipDecoder(), b""
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for low, high in itertools.pairwise(edges):
        read += b"".join(decoder.feed(body[low:high]))
    decoder.finish()
    return read


@given(st.lists(st.binary(max_size=300), max_size=4), st.lists(st.integers(0, 600), max_size=6), st.integers(0, 9))
def test_members_follow_members_however_they_are_cut(parts: list[bytes], cuts: list[int], level: int) -> None:
    assert inflate(b"".join(gzip.compress(part, level) for part in parts), cuts) == b"".join(parts)


@given(st.binary(min_size=1, max_size=300), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_stream_that_was_cut_off_is_refused(body: bytes, share: float) -> None:
    packed = gzip.compress(body)
    cut = packed[: max(1, int(len(packed) * share))]
    with pytest.raises(InvalidInput, match="cut off") as refused:
        inflate(cut, [])
    assert refused.value.code == "invalid_encoding"


@pytest.mark.parametrize(
    "body",
    [b"plain text", zlib.compress(b"zlib"), gzip.compress(b"a", mtime=0) + b"garbage", b"\x1f\x8b\xff"],
    ids=["plain", "zlib", "garbage behind", "cut"],
)
def test_what_is_not_gzip(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        inflate(body, [])


def test_a_flipped_bit_is_noticed() -> None:
    packed = bytearray(gzip.compress(b"hello" * 100))
    packed[-6] ^= 1  # in the checksum
    with pytest.raises(InvalidInput):
        inflate(bytes(packed), [])


@pytest.mark.parametrize("size", [GZIP_STEP_BYTES - 1, GZIP_STEP_BYTES, GZIP_STEP_BYTES + 1, 3 * GZIP_STEP_BYTES])
@pytest.mark.parametrize("tail", [1, 4, 8, 9, 12])
def test_the_edge_of_a_step_is_no_edge(size: int, tail: int) -> None:
    body = bytes(size)
    packed = gzip.compress(body)
    assert inflate(packed, [len(packed) - tail]) == body


def test_a_bomb_is_stopped_by_the_meter_before_it_is_large() -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    assert len(bomb) < 100_000
    decoder, meter, largest = GzipDecoder(), ByteLimit(1024 * 1024), 0
    with pytest.raises(PayloadTooLarge):
        for piece in decoder.feed(bomb):
            largest = max(largest, len(piece))
            meter.take(len(piece))
    assert 0 < largest <= GZIP_STEP_BYTES


def test_the_meter_lets_its_limit_through() -> None:
    meter = ByteLimit(10)
    meter.take(10)
    with pytest.raises(PayloadTooLarge, match="10 bytes"):
        meter.take(1)


def test_no_encoding_is_an_encoding_too() -> None:
    decoder = IdentityDecoder()
    assert list(decoder.feed(b"as it is")) == [b"as it is"]
    decoder.finish()


def test_an_empty_body_is_an_empty_corpus() -> None:
    assert inflate(b"", []) == b""
