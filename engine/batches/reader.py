"""The lines of a stored file: their numbers, where they lie, and their bytes, in constant memory.

Lines end at the byte `\\n`. Blank ones are passed over, and keep their number. A byte order mark before the first line
is no part of it. A carriage return before the line feed is white space to JSON, and stays.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import NamedTuple, TypeVar

from engine.corpus.lines import BOM
from engine.process.work_threads import WorkThreads

T = TypeVar("T")
# Of a file, split and processed in one step of a work thread.
STEP_BYTES = 128 * 1024
_BLANK = b" \t\r"


class FileLine(NamedTuple):
    """One line. `number` counts from 1. `start` and `stop`: bytes of the file; the next line begins at `stop`.

    `data` is None where the line is longer than the reader keeps.
    """

    number: int
    start: int
    stop: int
    data: bytes | None


class LineSplitter:
    """Splits a stream of bytes into lines. `offset` and `line`: what lies before the stream's first byte."""

    def __init__(self, *, max_line_bytes: int, offset: int = 0, line: int = 0) -> None:
        self._max_line_bytes = max_line_bytes
        self._start = offset  # of the line that is not complete
        self._number = line
        self._rest: list[bytes] = []
        self._rest_bytes = 0  # of the line, those that are not kept too

    def feed(self, chunk: bytes) -> list[FileLine]:
        """The lines that this chunk completes, without blank ones."""
        first, *others = chunk.split(b"\n")
        self._keep(first)
        if not others:
            return []
        lines = self._end_line(1)
        number, start, limit = self._number, self._start, self._max_line_bytes
        last = others.pop()
        for data in others:
            number += 1
            stop = start + len(data) + 1
            if data[:1] == b"{" or data.strip(_BLANK):
                lines.append(FileLine(number, start, stop, data if len(data) <= limit else None))
            start = stop
        self._number, self._start = number, start
        self._keep(last)
        return lines

    def finish(self) -> list[FileLine]:
        """The last line, where the stream does not end with a line feed."""
        return self._end_line(0) if self._rest_bytes else []

    def _keep(self, piece: bytes) -> None:
        self._rest_bytes += len(piece)
        if self._rest_bytes > self._max_line_bytes + len(BOM):
            self._rest.clear()
        elif piece:
            self._rest.append(piece)

    def _end_line(self, feed_bytes: int) -> list[FileLine]:
        data: bytes | None = b"".join(self._rest)
        size, start = self._rest_bytes, self._start
        if data is not None and start == 0 and data.startswith(BOM):
            data, start, size = data[len(BOM) :], len(BOM), size - len(BOM)
        if size > self._max_line_bytes:
            data = None
        self._number += 1
        self._start += self._rest_bytes + feed_bytes
        self._rest.clear()
        self._rest_bytes = 0
        if data is not None and not data.strip(_BLANK):
            return []
        return [FileLine(self._number, start, self._start, data)]


class LineIterator:
    """The lines of a file from a position on, in lists of neighbours; split in the work threads.

    `chunks`: the bytes from `offset` on, which is where a line begins; `line`: the number of the line before it.
    """

    def __init__(
        self,
        work: WorkThreads,
        project: str,
        chunks: AsyncIterator[bytes],
        *,
        max_line_bytes: int,
        offset: int = 0,
        line: int = 0,
    ) -> None:
        self._work = work
        self._project = project
        self._chunks = chunks
        self._splitter = LineSplitter(max_line_bytes=max_line_bytes, offset=offset, line=line)

    def __aiter__(self) -> AsyncIterator[list[FileLine]]:
        return self.map(lambda lines: lines)

    async def map(self, step: Callable[[list[FileLine]], T]) -> AsyncGenerator[T]:
        """What `step` makes of each list of lines, in the thread that split them. Lists may be empty."""

        def steps(chunk: bytes) -> Iterator[T]:
            for low in range(0, len(chunk), STEP_BYTES):
                yield step(self._splitter.feed(chunk[low : low + STEP_BYTES]))

        async for chunk in self._chunks:
            async with aclosing(self._work.drive(self._project, steps(chunk))) as results:  # type: ignore[type-var]
                async for result in results:
                    yield result
        yield await self._work.run(self._project, lambda: step(self._splitter.finish()))
