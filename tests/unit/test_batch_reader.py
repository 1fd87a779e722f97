"""The reader of stored files: numbers, offsets and bytes of lines, however the file is cut into chunks."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from engine.batches.reader import FileLine, LineIterator, LineSplitter
from engine.process.work_threads import WorkThreads

MAX = 20
FILE = b"\xef\xbb\xbfone\r\n\n \t\r\ntwo\n" + b"x" * 21 + b"\n" + b"y" * 20 + b"\n\xef\xbb\xbf\nlast"
LINES = [(1, b"one\r"), (4, b"two"), (5, None), (6, b"y" * 20), (7, b"\xef\xbb\xbf"), (8, b"last")]


def split(data: bytes, rng: random.Random, *, offset: int = 0, line: int = 0) -> list[FileLine]:
    splitter = LineSplitter(max_line_bytes=MAX, offset=offset, line=line)
    lines: list[FileLine] = []
    at = 0
    while at < len(data):
        size = rng.choice((1, 2, 3, 7, 50))
        lines += splitter.feed(data[at : at + size])
        at += size
    return lines + splitter.finish()


@pytest.mark.parametrize("seed", range(50))
def test_lines_are_the_same_however_the_file_is_cut(seed: int) -> None:
    lines = split(FILE, random.Random(seed))
    assert [(line.number, line.data) for line in lines] == LINES
    for line in lines:
        assert FILE[line.start : line.stop].removesuffix(b"\n") == (line.data or b"x" * 21)


@pytest.mark.parametrize("seed", range(20))
def test_reading_goes_on_where_any_line_ended(seed: int) -> None:
    whole = split(FILE, random.Random(seed))
    for position, line in enumerate(whole):
        rest = split(FILE[line.stop :], random.Random(seed + 1), offset=line.stop, line=line.number)
        assert rest == whole[position + 1 :]


@pytest.mark.parametrize("data", [b"", b"\n", b"\n\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n \n", b"  "])
def test_a_file_of_blanks_has_no_lines(data: bytes) -> None:
    for seed in range(10):
        assert split(data, random.Random(seed)) == []


def test_a_line_that_is_too_long_is_not_kept() -> None:
    splitter = LineSplitter(max_line_bytes=MAX)
    for _ in range(1000):
        assert splitter.feed(b"x" * 1000) == []
        assert sum(map(len, splitter._rest)) <= 2000  # the promise is about memory
    assert splitter.feed(b"\n") == [FileLine(1, 0, 1_000_001, None)]


async def _chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for low in range(0, len(data), size):
        yield data[low : low + size]


@pytest.mark.parametrize("size", [1000, 300_000, 10_000_000])
async def test_the_iterator_reads_all_lines_in_order(size: int) -> None:
    data = b"".join(b"line %d\n" % number for number in range(100_000))
    work = WorkThreads()
    try:
        lines = LineIterator(work, "p", _chunks(data, size), max_line_bytes=1000)
        found = [line async for batch in lines for line in batch]
        assert [line.data for line in found] == data.splitlines()
        assert found[-1].stop == len(data)
        again = LineIterator(work, "p", _chunks(data, size), max_line_bytes=1000)
        counts = [count async for count in again.map(len)]
        assert sum(counts) == 100_000
        assert max(counts) <= 128 * 1024 / len(b"line 0\n")
    finally:
        work.close()
