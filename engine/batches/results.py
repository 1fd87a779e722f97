"""Results of a batch as a stream of lines in the order of its input file, while it runs too.

Once the batch has ended, its output and error files are merged: the id of a line holds its number. Before that the
lines are made of the input file and the outcomes so far, up to the first line without one: who reads on behind the last
line that was read misses none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from engine.batches.batch_rows import get_batch
from engine.batches.ended_files import check_files, output_deleted
from engine.batches.output_lines import ID_PREFIX, json_text, line_ids, line_of
from engine.batches.output_outcomes import read_outcomes
from engine.batches.output_plan import PlannedLine, Usage, render
from engine.batches.output_source import OutputSource
from engine.batches.reader import FileLine, LineIterator
from engine.files.file_store import FileStore
from engine.files.read import read_file
from engine.job_store import JobStore
from engine.process.work_threads import WorkThreads
from models.batch import ENDED
from models.errors import InvalidInput
from models.file_errors import BatchNotFound, FileNotFound

# The reader's bound: lines of our own files are as long as their vectors make them.
MAX_LINE_BYTES = 1 << 40
ID_START = len(b'{"id":"')
ID_END = ID_START + len(ID_PREFIX) + 32
CUSTOM_ID_START = ID_END + len(b'","custom_id":')
ESTIMATES = Usage(tokens=0, total_weight=0)


@dataclass(frozen=True, slots=True)
class BatchResults:
    """Lines of a batch. `is_complete`: the batch has ended, and no more lines will come."""

    is_complete: bool
    lines: AsyncIterator[list[bytes]]


@dataclass(frozen=True, slots=True)
class ResultsReader:
    """Reads results of one project."""

    store: JobStore
    files: FileStore
    work: WorkThreads
    project: str

    async def open(self, batch_id: str, *, after: str | None, limit: int | None) -> BatchResults:
        """At most `limit` lines behind the one whose custom_id or id is `after`.

        Raises BatchNotFound; BatchOutputDeleted when a file of the ended batch is gone; Conflict when it failed
        without one; InvalidInput when no line is called `after`.
        """
        batch = await get_batch(self.store, self.project, batch_id)
        if batch.status in ENDED:
            await check_files(self.files, self.project, batch)
            found = self._of_files(batch.output_file_id, batch.error_file_id, after)
        else:
            source = await OutputSource.load(self.store.database, self.files, self.work, batch.job_id)
            if source is None:
                raise BatchNotFound(batch_id)
            found = self._of_running(source, after)
        # The first lines are read before the answer begins: it may still be an error.
        try:
            first: list[bytes] = await anext(found, [])
        except FileNotFound:  # deleted and removed since
            if batch.status not in ENDED:
                raise
            raise output_deleted({}) from None
        return BatchResults(batch.status in ENDED, _limited(first, found, limit))

    async def _of_running(self, source: OutputSource, after: str | None) -> AsyncIterator[list[bytes]]:
        batch = source.batch
        if batch.in_progress_at is None:
            return
        is_behind = after is None
        async for group in source.groups(source.planner()):
            if not is_behind:
                at = next((i for i, line in enumerate(group.lines) if _is_called(batch.id, line, after or "")), None)
                if at is None:
                    continue
                is_behind, group.lines = True, group.lines[at + 1 :]
            outcomes = await read_outcomes(self.store.database, source.job, group)
            step = partial(render, batch.id, group.lines, outcomes, ESTIMATES)
            rendered = (await self.work.run(self.project, step)).lines
            numbers = zip(group.lines, rendered, strict=False)
            done = sum(1 for _ in takewhile(lambda pair: pair[0].number == pair[1][0], numbers))
            yield [text for _, _, text in rendered[:done]]
            if done < len(group.lines):
                return
        if not is_behind:
            raise _unknown_line()

    async def _of_files(
        self, output_id: str | None, error_id: str | None, after: str | None
    ) -> AsyncIterator[list[bytes]]:
        """The lines of both files, by their numbers."""
        is_behind = after is None
        output, errors = self._lines_of(output_id), self._lines_of(error_id)
        left, right = await anext(output, None), await anext(errors, None)
        while left or right:
            # All lines of one list that come before the first line of the other.
            if right is None or (left is not None and _number(left[0]) < _number(right[0])):
                assert left is not None
                lines, left = _split(left, right)
                left = left or await anext(output, None)
            else:
                lines, right = _split(right, left)
                right = right or await anext(errors, None)
            if not is_behind:
                at = next((i for i, line in enumerate(lines) if _is_text_of(line, after or "")), None)
                if at is None:
                    continue
                is_behind, lines = True, lines[at + 1 :]
            yield [line + b"\n" for line in lines]
        if not is_behind:
            raise _unknown_line()

    async def _lines_of(self, file_id: str | None) -> AsyncIterator[list[bytes]]:
        """Lists of at least one line."""
        if file_id is None:
            return
        lines = LineIterator(self.work, self.project, read_file(self.files, file_id), max_line_bytes=MAX_LINE_BYTES)
        async for found in lines.map(_bytes_of):
            if found:
                yield found


def _bytes_of(lines: list[FileLine]) -> list[bytes]:
    return [line.data for line in lines if line.data is not None]


def _number(line: bytes) -> int:
    return line_of(line[ID_START:ID_END])


def _split(lines: list[bytes], others: list[bytes] | None) -> tuple[list[bytes], list[bytes]]:
    """Those before the first of the others, and the rest."""
    if others is None or _number(lines[-1]) < (first := _number(others[0])):
        return lines, []
    at = next(i for i, line in enumerate(lines) if _number(line) > first)
    return lines[:at], lines[at:]


def _is_text_of(line: bytes, name: str) -> bool:
    return line[ID_START:ID_END] == name.encode() or line.startswith(json_text(name) + b",", CUSTOM_ID_START)


def _is_called(batch_id: str, line: PlannedLine, name: str) -> bool:
    return line.custom_id == name or line_ids(batch_id, line.number)[0] == name.encode()


async def _limited(
    first: list[bytes], rest: AsyncIterator[list[bytes]], limit: int | None
) -> AsyncIterator[list[bytes]]:
    lines: list[bytes] | None = first
    while lines is not None and (limit is None or limit > 0):
        page = lines if limit is None else lines[:limit]
        if page:
            yield page
        limit = None if limit is None else limit - len(page)
        lines = await anext(rest, None)


def _unknown_line() -> InvalidInput:
    return InvalidInput(
        "Invalid 'after': no request of this batch has this custom_id, and no line of its results has this id. "
        "Send the custom_id of the last line that you have read.",
        param="after",
        code="invalid_value",
    )
