"""The output step: writes the output and error files of a batch whose job has ended, in the order of its input file.

It reads the input file twice. The survey counts the lines with embeddings and sums their weights, by which the usage is
shared. Then the lines are written in parts: the transaction that gives a part to the batch also stores where the step
goes on. So a crash costs the part in hand, the next worker writes the same bytes again, and a reader finds no file
before the whole one is there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

from engine.batches.output_end import end_batch, fail_batch
from engine.batches.output_groups import VECTOR_BYTES, LineGroup
from engine.batches.output_outcomes import HAS_ERROR, HAS_VECTOR, read_outcomes, read_states
from engine.batches.output_plan import OutputMisaligned, Usage, render
from engine.batches.output_progress import OutputProgress
from engine.batches.output_source import OutputSource
from engine.batches.steps import ClaimedStep, StepParts, end_step, lock_step, release_step, store_progress
from engine.files.parts import PartLeases, WrittenPart, adopt_part, write_part_under
from engine.jobs.control.batch_of_job import disown_output
from engine.observability import failpoints
from models.batch import ENDED, error_owner, output_owner
from models.errors import ResultsChanged

# Bytes of both files in memory, before they are written as a part of each.
PART_BYTES = 32 * 1024 * 1024
SURVEY_PROGRESS_S = 5.0
SURVEY_BYTES = 1 << 60  # no vectors are read: lines alone bound a group
# Results that a worker kept on its disk may be recorded late: then all is written anew.
MAX_ROUNDS = 3
# A job that expired may have calls in flight, whose results are still recorded.
WAIT_FOR_SHARDS_S = 1.0
PIECE_BYTES = 1024 * 1024


async def write_output(parts: StepParts, step: ClaimedStep, *, part_bytes: int = PART_BYTES) -> None:
    """Write the files of the job's batch, and end the batch. A job without a batch has nothing to write.

    Raises StepStopped, StorageUnavailable, ObjectsUnavailable.
    """
    database = parts.store.database
    source = await OutputSource.load(database, parts.files, parts.work, step.job_id)
    if source is None or source.batch.status in ENDED:
        async with database.write() as connection:
            await end_step(connection, step)
        return
    if source.job.open_shards > 0:
        await release_step(parts.store, step, delay_s=WAIT_FOR_SHARDS_S, counts_as_attempt=False)
        return
    if source.batch.in_progress_at is None:
        async with database.write() as connection:
            await end_batch(connection, source, step, None)
        return
    progress = OutputProgress() if step.progress is None else OutputProgress.of(step.progress)
    try:
        output = _Output(parts, step, source, part_bytes, progress)
        is_whole = await output.run()
        for _ in range(MAX_ROUNDS - 1):
            if is_whole:
                break
            source = await OutputSource.load(database, parts.files, parts.work, step.job_id) or source
            output = _Output(parts, step, source, part_bytes, OutputProgress())
            is_whole = await output.run()
        if not is_whole:
            raise OutputMisaligned("the results of the batch changed again and again while its output was written")
    except OutputMisaligned as error:
        async with database.write() as connection:
            await fail_batch(connection, source, step, error.code, error.message)
        return
    async with database.write() as connection:
        await end_batch(connection, source, step, output.progress)


@dataclass(slots=True)
class _Output:
    """One run of the step."""

    parts: StepParts
    step: ClaimedStep
    source: OutputSource
    part_bytes: int
    progress: OutputProgress
    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    buffered_bytes: int = 0

    async def run(self) -> bool:
        """Write all lines, or the rest of them. False: results have changed meanwhile. Raises OutputMisaligned."""
        try:
            if self.progress.stage == "survey":
                await self._survey()
            await self._write_lines()
        except ResultsChanged:
            return False
        return self.progress.matches_survey()

    async def _survey(self) -> None:
        """Count the lines. Raises OutputMisaligned."""
        progress, batch = self.progress, self.source.batch
        if progress.cursors is None:
            async with self.parts.store.database.write() as connection:
                await lock_step(connection, self.step)
                await disown_output(connection, batch.id)
                await store_progress(connection, self.step, progress.to_store())
        planner = self.source.planner(progress.cursors)
        stored_at = time.monotonic()
        groups = self.source.groups(planner, offset=progress.offset, line=progress.line, vector_bytes=SURVEY_BYTES)
        async for group in groups:
            self.step.check()
            await self._count(group)
            progress.offset, progress.line, progress.cursors = group.stop, group.last_line, planner.cursors
            if time.monotonic() - stored_at > SURVEY_PROGRESS_S:
                stored_at = time.monotonic()
                await self._store()
        planner.check_end()
        if progress.completed + progress.failed != batch.total:
            raise OutputMisaligned(
                f"the input file has {progress.completed + progress.failed} requests, and its validation saw "
                f"{batch.total}"
            )
        progress.begin_writing(self.source.job.prompt_tokens)
        await self._store()

    async def _write_lines(self) -> None:
        """Write the lines that no claim before this one has written. Raises OutputMisaligned."""
        progress, source, work = self.progress, self.source, self.parts.work
        usage = Usage(progress.tokens, progress.total_weight)
        planner = source.planner(progress.cursors)
        not_run = source.not_run_error()
        groups = source.groups(
            planner,
            offset=progress.offset,
            line=progress.line,
            vector_bytes=min(VECTOR_BYTES, self.part_bytes),
        )
        async for group in groups:
            self.step.check()
            outcomes = await read_outcomes(self.parts.store.database, source.job, group)
            lines = partial(
                render,
                source.batch.id,
                group.lines,
                outcomes,
                usage,
                weight_before=progress.weight,
                not_run=not_run,
            )
            rendered = await work.run(source.batch.project, lines)
            progress.weight = rendered.weight
            self._buffer(rendered.lines)
            progress.offset, progress.line, progress.cursors = group.stop, group.last_line, planner.cursors
            if self.buffered_bytes >= self.part_bytes:
                await self._flush()
        await self._flush()
        planner.check_end()

    async def _count(self, group: LineGroup) -> None:
        states = {
            first: await read_states(self.parts.store.database, self.source.job, first, stop)
            for first, stop in group.stored_ranges()
        }

        def count() -> tuple[int, int, int]:
            completed = weight = not_run = 0
            for line in group.lines:
                variant = line.variant
                if variant is None:
                    continue
                first = group.ranges[variant.number][1]
                found = states.get(first)
                own = () if found is None else found[line.first_index - first : line.stop - first].tolist()
                if len(own) == line.stop - line.first_index and own.count(HAS_VECTOR) == len(own):
                    completed += 1
                    weight += line.weight()
                elif HAS_ERROR not in own:
                    not_run += 1
            return completed, weight, not_run

        completed, weight, not_run = await self.parts.work.run(self.source.batch.project, count)
        self.progress.completed += completed
        self.progress.failed += len(group.lines) - completed
        self.progress.weight += weight
        self.progress.not_run += not_run

    def _buffer(self, lines: list[tuple[int, bool, bytes]]) -> None:
        for _, has_embeddings, text in lines:
            (self.output if has_embeddings else self.errors).append(text)
            self.buffered_bytes += len(text)
        completed = sum(has_embeddings for _, has_embeddings, _ in lines)
        self.progress.completed += completed
        self.progress.failed += len(lines) - completed

    async def _flush(self) -> None:
        """Store what is in memory, and where the step goes on, in one transaction."""
        progress, batch_id = self.progress, self.source.batch.id
        files = self.parts.files
        # The first part keeps its lease while the second one is written.
        async with PartLeases(files.database, lease_s=files.settings.lease_s) as leases:
            output, errors = await self._write(leases, self.output), await self._write(leases, self.errors)
            failpoints.hit("after_output_part")
            async with self.parts.store.database.write() as connection:
                await lock_step(connection, self.step)
                if output is not None:
                    await adopt_part(connection, output, owner_id=output_owner(batch_id), ordinal=progress.output_parts)
                    progress.output_parts += 1
                if errors is not None:
                    await adopt_part(connection, errors, owner_id=error_owner(batch_id), ordinal=progress.error_parts)
                    progress.error_parts += 1
                await store_progress(connection, self.step, progress.to_store())
        self.output, self.errors, self.buffered_bytes = [], [], 0
        failpoints.hit("after_output_progress")

    async def _write(self, leases: PartLeases, lines: list[bytes]) -> WrittenPart | None:
        if not lines:
            return None
        return await write_part_under(leases, self.parts.files, self.source.batch.project, _pieces(lines))

    async def _store(self) -> None:
        async with self.parts.store.database.write() as connection:
            await store_progress(connection, self.step, self.progress.to_store())


async def _pieces(lines: list[bytes]) -> AsyncIterator[bytes]:
    """The lines, joined to pieces of about PIECE_BYTES."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)
