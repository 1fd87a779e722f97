"""What the output of a batch is made of: its row, its job, the variants of that, and its input file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from engine.batches.output_groups import VECTOR_BYTES, LineGroup, read_groups
from engine.batches.output_lines import CANCELLED, EXPIRED, LineError
from engine.batches.output_plan import LinePlanner, Variant, decode_lines
from engine.batches.reader import LineIterator
from engine.files.file_store import FileStore
from engine.files.read import read_file
from engine.process.work_threads import WorkThreads
from engine.storage.database import Database
from models.batch import Batch, JobVariant
from models.job import Job, JobStatus

_BATCH = select(*Batch.__table__.columns)
_JOB = select(*(column for column in Job.__table__.columns if column.name != "options"))


@dataclass(frozen=True, slots=True)
class OutputSource:
    """A batch and its job, as they were read."""

    files: FileStore
    work: WorkThreads
    batch: Row[Any]
    job: Row[Any]
    variants: Sequence[Variant]
    duplicate_lines: Sequence[int]

    @classmethod
    async def load(cls, database: Database, files: FileStore, work: WorkThreads, job_id: str) -> OutputSource | None:
        """The batch of a job; None: it has none. Raises StorageUnavailable."""
        async with database.read() as connection:
            batch = (await connection.execute(_BATCH.where(Batch.job_id == job_id))).one_or_none()
            if batch is None:
                return None
            job = (await connection.execute(_JOB.where(Job.id == job_id))).one()
            rows = await connection.execute(
                select(*JobVariant.__table__.columns).where(JobVariant.job_id == job_id).order_by(JobVariant.number)
            )
            variants = [Variant.of(row) for row in rows]
        return cls(files, work, batch, job, variants, decode_lines(batch.duplicate_lines))

    def planner(self, cursors: Sequence[int] | None = None) -> LinePlanner:
        """A planner at the beginning of the file, or at these cursors."""
        return LinePlanner(self.variants, self.duplicate_lines, cursors)

    async def groups(
        self, planner: LinePlanner, *, offset: int = 0, line: int = 0, vector_bytes: int = VECTOR_BYTES
    ) -> AsyncIterator[LineGroup]:
        """The lines of the input file behind `line`, which ends at `offset`.

        Raises OutputMisaligned, FileNotFound, StorageUnavailable, ObjectsUnavailable.
        """
        max_line_bytes = self.files.settings.max_line_bytes
        lines = LineIterator(
            self.work,
            self.batch.project,
            read_file(self.files, self.batch.input_file_id, offset),
            max_line_bytes=max_line_bytes,
            offset=offset,
            line=line,
        )
        groups = read_groups(
            lines,
            planner,
            default_model=self.batch.default_model,
            max_line_bytes=max_line_bytes,
            vector_bytes=vector_bytes,
        )
        async for group in groups:
            yield group

    def not_run_error(self) -> LineError:
        """The error of the lines that the end of the job left without an outcome."""
        if self.job.status == JobStatus.EXPIRED:
            return LineError(*EXPIRED, status=None)
        if self.job.status == JobStatus.FAILED:
            causes = [entry for entry in self.job.error_summary if not entry["count"]]
            if causes:
                return LineError(causes[-1]["code"], causes[-1]["message"], status=None)
            return LineError("batch_failed", "The batch failed before this request was executed.", status=None)
        return LineError(*CANCELLED, status=None)
