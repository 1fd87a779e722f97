"""File intake: stores the inputs of a stored file as the shards of a job whose row is there already.

The inputs of a job with variants go to one sharder for each of them; those of other jobs to one. What is stored grows
with each transaction, together with the hash over it. After a crash the file is read again from its beginning, the
stored part of each variant is only compared, and what follows is stored: no input is missing or stored twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, case, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.corpus.lines import ParsedRecords
from engine.job_store import JobStore
from engine.jobs.ingest.dedup import DuplicateIndex
from engine.jobs.ingest.shard_rows import insert_shard, is_open
from engine.jobs.ingest.sharding import JobSpec, Prefix, Sharder
from engine.jobs.recording import refused_inputs
from engine.jobs.recording.completion import NO_OPEN_SHARD, end_columns, final_status_of
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.jobs.shard_draft import ShardDraft
from engine.observability import failpoints
from engine.process.work_threads import WorkThreads
from engine.webhooks.job_events import record_job_event
from models.batch import JobVariant
from models.errors import EmbedmillError, IdempotencyMismatch, PayloadTooLarge
from models.job import ACTIVE_STATUSES, FINISHED, Job

# Inputs that wait for their shard to be full, of all variants together; the longest are then stored as small shards.
BUFFERED_BYTES = 16 * 1024 * 1024
SHARDS_PER_TRANSACTION = 32


class JobEnded(EmbedmillError):
    """The job was cancelled, deleted or has expired while its file was read."""

    code = "job_ended"


class FileChanged(EmbedmillError):
    """The file no longer begins with what was stored of it, or holds other inputs than its validation has counted."""

    code = "file_changed"


@dataclass(frozen=True, slots=True)
class IntakeTarget:
    """Where inputs of one model with one set of options go. `variant` None: to the job itself.

    `stored`: what of them is stored. `inputs`: how many there are, where that is known.
    """

    spec: JobSpec
    variant: int | None = None
    first_index: int = 0
    stored: Prefix | None = None
    inputs: int | None = None


@dataclass(frozen=True, slots=True)
class TargetDraft:
    """A shard to be stored, and the number of its target."""

    target: int
    draft: ShardDraft


class FileIntake:
    """The intake of one file by one worker. `guard`: begins each transaction; raises when the worker may not go on.

    `targets`: by number. Call feed() in a work thread, and write() what it returns, until the file ends; then finish().
    """

    def __init__(
        self,
        store: JobStore,
        dispatcher: Dispatcher,
        work: WorkThreads,
        *,
        job_id: str,
        project: str,
        targets: Mapping[int, IntakeTarget],
        guard: Callable[[AsyncConnection], Awaitable[None]],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._work = work
        self._job_id = job_id
        self._project = project
        self._targets = targets
        self._guard = guard
        self._duplicates = DuplicateIndex()
        self._sharders: dict[int, Sharder] = {}
        self._fed: dict[int, int] = dict.fromkeys(targets, 0)
        self._all_fed = 0
        self._buffered_bytes = 0
        self._dispatching: asyncio.Task[None] | None = None
        self.first_error = ""  # of an input that was refused

    @property
    def accepted(self) -> int:
        """How many inputs were not refused."""
        return sum(sharder.accepted for sharder in self._sharders.values())

    def feed(self, records: Sequence[tuple[int, ParsedRecords]]) -> list[TargetDraft]:
        """Add records, each list to the target of its number. Returns the shards that are to be stored.

        Raises FileChanged, PayloadTooLarge.
        """
        drafts: list[TargetDraft] = []
        for number, lines in records:
            sharder = self._sharder(number)
            self._count(number, lines)
            if lines.errors and not self.first_error:
                self.first_error = next(iter(lines.errors.values())).message
            before = sharder.buffered_bytes
            try:
                drafts += [TargetDraft(number, draft) for draft in sharder.feed(lines)]
            except IdempotencyMismatch as error:
                raise _changed() from error
            self._buffered_bytes += sharder.buffered_bytes - before
        if self._buffered_bytes > BUFFERED_BYTES:
            drafts += self._flush_longest()
        return drafts

    async def write(self, drafts: Sequence[TargetDraft]) -> None:
        """Store shards in one transaction. Raises JobEnded, what `guard` raises, StorageUnavailable."""
        drafts = [each for each in drafts if len(each.draft)]
        if not drafts:
            return
        async with self._store.database.write() as connection:
            await self._insert(connection, drafts)
            failpoints.hit("mid_ingest")
        failpoints.hit("after_ingest_commit")
        if any(each.draft.refused < len(each.draft) for each in drafts):
            await self._dispatch()

    async def finish(self, at_end: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        """Store the rest, and end the corpus: in the last transaction, which ends with `at_end`.

        Raises as write(); FileChanged where the inputs are not those that were counted.
        """
        drafts: list[TargetDraft] = []
        for number, sharder in self._sharders.items():
            try:
                drafts.append(TargetDraft(number, await self._work.run(self._project, sharder.end)))
            except IdempotencyMismatch as error:
                raise _changed() from error
            if len(drafts) >= SHARDS_PER_TRANSACTION:
                await self.write(drafts)
                drafts = []
        await self.write(drafts)
        for number, target in self._targets.items():
            stored = target.stored
            if number not in self._sharders and stored is not None and stored.inputs:
                raise _changed()
            if target.inputs is not None and self._fed[number] != target.inputs:
                raise _changed()
        async with self._store.database.write() as connection:
            await self._guard(connection)
            # The row itself is locked, so that the statement sees the shards that are done by then.
            await self._lock_job(connection, for_share=False)
            ended = await connection.execute(
                update(Job).where(Job.id == self._job_id).values(self._ending()).returning(Job.status)
            )
            if ended.scalar_one_or_none() in FINISHED:
                await record_job_event(connection, self._job_id)
            await at_end(connection)
        await self._dispatch()

    def _sharder(self, number: int) -> Sharder:
        sharder = self._sharders.get(number)
        if sharder is None:
            target = self._targets[number]
            sharder = self._sharders[number] = Sharder(
                self._store.settings,
                target.spec,
                target.stored,
                first_index=target.first_index,
                duplicates=self._duplicates,
                salt=b"" if target.variant is None else target.variant.to_bytes(4, "big"),
            )
        return sharder

    def _count(self, number: int, lines: ParsedRecords) -> None:
        count = len(lines.inputs) + sum(lines.repeats.values()) - len(lines.repeats)
        self._fed[number] += count
        self._all_fed += count
        expected = self._targets[number].inputs
        if expected is not None and self._fed[number] > expected:
            raise _changed()  # before an input gets an index of the next variant
        limit = self._store.settings.max_inputs_per_job
        if self._all_fed > limit:
            raise PayloadTooLarge(
                f"the file has more than {limit} inputs: send it as several", param="input", code="too_many_inputs"
            )

    def _flush_longest(self) -> list[TargetDraft]:
        drafts = []
        for number, sharder in sorted(self._sharders.items(), key=lambda item: -item[1].buffered_bytes):
            if self._buffered_bytes <= BUFFERED_BYTES // 2:
                break
            self._buffered_bytes -= sharder.buffered_bytes
            drafts.append(TargetDraft(number, sharder.flush()))
        return drafts

    async def _lock_job(self, connection: AsyncConnection, *, for_share: bool) -> None:
        statement = select(Job.id).where(
            Job.id == self._job_id,
            Job.status.in_(sorted(ACTIVE_STATUSES)),
            Job.total.is_(None),
            Job.deleted_at.is_(None),
        )
        if (await connection.execute(statement.with_for_update(read=for_share, key_share=True))).first() is None:
            raise JobEnded("the job has ended before its file was read")

    async def _insert(self, connection: AsyncConnection, drafts: Sequence[TargetDraft]) -> None:
        await self._guard(connection)
        await self._lock_job(connection, for_share=True)
        refused: list[dict[str, Any]] = []
        for each in drafts:
            variant = self._targets[each.target].variant
            rows = refused_inputs.refused_rows(self._job_id, each.draft)
            await insert_shard(connection, self._job_id, each.draft, rows, variant=variant)
            refused += rows
            if variant is not None:
                await connection.execute(
                    update(JobVariant)
                    .where(JobVariant.job_id == self._job_id, JobVariant.number == variant)
                    .values(
                        ingested=JobVariant.ingested + len(each.draft),
                        refused=JobVariant.refused + each.draft.refused,
                        upload_hash=each.draft.prefix_hash,
                    )
                )
        refused_count = sum(each.draft.refused for each in drafts)
        values: dict[str, Any] = {
            "ingested": Job.ingested + sum(len(each.draft) for each in drafts),
            "open_shards": Job.open_shards + sum(is_open(each.draft) for each in drafts),
            "failed": Job.failed + refused_count,
            "upload_refused_inputs": Job.upload_refused_inputs + refused_count,
            "version": Job.version + 1,
        }
        if self._targets[drafts[-1].target].variant is None:
            values["upload_hash"] = drafts[-1].draft.prefix_hash
        if refused:
            summary = select(Job.error_summary).where(Job.id == self._job_id).with_for_update(key_share=True)
            known = (await connection.execute(summary)).scalar_one()
            values["error_summary"] = refused_inputs.add_to_summary(known, refused)
        await connection.execute(update(Job).where(Job.id == self._job_id).values(values))

    def _ending(self) -> dict[str, Any]:
        """The columns of a job whose corpus is complete. Its last shard may be done before the file was read."""
        has_ended = and_(Job.open_shards < 1, NO_OPEN_SHARD)
        ending = end_columns(self._store.settings) | {"status": final_status_of(Job.completed, Job.failed)}
        return {
            "total": Job.ingested,
            "version": Job.version + 1,
            **{name: case((has_ended, value), else_=Job.__table__.c[name]) for name, value in ending.items()},
        }

    async def _dispatch(self) -> None:
        """Dispatch due shards, unless the previous dispatch still waits for the broker."""
        if self._dispatching is None or self._dispatching.done():
            self._dispatching = await self._dispatcher.dispatch_soon()


def _changed() -> FileChanged:
    return FileChanged("the file is not what it was when its first inputs were read: send it again as a new file")
