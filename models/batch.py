"""OpenAI batches: a file of requests that runs as one job, and the steps that workers do for files."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Blob, Instant


class BatchStatus(StrEnum):
    """The states of a batch, in OpenAI's words. Each comment says what moves a batch in and out."""

    # In: the request that creates it. Out: the end of the validation; a cancel; the end of its window.
    VALIDATING = "validating"
    # In: a validation that found nothing wrong (or a lenient one). Out: the end of its job; a cancel.
    IN_PROGRESS = "in_progress"
    # In: its job has ended, and its output is being written. Out: the last part of the output.
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    # In: the validation found errors: nothing ran. Final.
    FAILED = "failed"
    # In: the output of a job that the end of the window stopped. Final.
    EXPIRED = "expired"
    # In: a cancel. Out: the output of what had run is written.
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


# The alias of a job whose inputs have different models or options: those of its variants apply.
MIXED = ""
ENDED = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


class StepKind(StrEnum):
    """What a worker is to do next for a job that reads or writes files."""

    VALIDATE = "validate"  # read the lines of a batch
    INGEST = "ingest"  # turn the input file into shards
    RUN = "run"  # nothing: the shards run. Due once the job has ended
    WRITE_OUTPUT = "write_output"  # write the output and error files of a batch


class Batch(Base):
    """An OpenAI batch. Its requests run as the job `job_id`, whose row has the state of the run."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    project: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    completion_window: Mapped[str] = mapped_column(String(16))
    input_file_id: Mapped[str] = mapped_column(String(64))
    # The requests came in the body: the input file was made of them, and goes with the batch.
    is_inline: Mapped[bool] = mapped_column(Boolean, default=False)
    # For lines whose body names no model: inline batches only.
    default_model: Mapped[str | None] = mapped_column(String(256))
    # A bad line fails that line only, not the batch.
    is_lenient: Mapped[bool] = mapped_column(Boolean, default=False)
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSON(none_as_null=True))
    output_expires_after_s: Mapped[int | None] = mapped_column(BigInteger)
    # Of the validation: the first thousand as {code, message, param, line}, and how many there are.
    errors: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    error_count: Mapped[int] = mapped_column(BigInteger, default=0)
    # Lines: all of them (0 until they are validated), those that cannot run, and at the end the outcome.
    total: Mapped[int] = mapped_column(BigInteger, default=0)
    refused: Mapped[int] = mapped_column(BigInteger, default=0)
    completed: Mapped[int] = mapped_column(BigInteger, default=0)
    failed: Mapped[int] = mapped_column(BigInteger, default=0)
    # Numbers of the lines that repeat an earlier custom_id (lenient): zlib over little-endian int64.
    duplicate_lines: Mapped[bytes | None] = mapped_column(Blob)
    output_file_id: Mapped[str | None] = mapped_column(String(64))
    error_file_id: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str] = mapped_column(String(64))

    created_at: Mapped[float] = mapped_column(Instant)
    in_progress_at: Mapped[float | None] = mapped_column(Instant)
    expires_at: Mapped[float] = mapped_column(Instant)
    finalizing_at: Mapped[float | None] = mapped_column(Instant)
    completed_at: Mapped[float | None] = mapped_column(Instant)
    failed_at: Mapped[float | None] = mapped_column(Instant)
    expired_at: Mapped[float | None] = mapped_column(Instant)
    cancelling_at: Mapped[float | None] = mapped_column(Instant)
    cancelled_at: Mapped[float | None] = mapped_column(Instant)

    __table_args__ = (
        Index("ix_batches_project_id", "project", "id"),
        Index("ix_batches_input_file_id", "input_file_id"),
    )


def output_owner(batch_id: str) -> str:
    """The owner of the parts of a batch's output file, until the file is there."""
    return f"{batch_id}:output"


def error_owner(batch_id: str) -> str:
    """The owner of the parts of a batch's error file, until the file is there."""
    return f"{batch_id}:error"


class JobVariant(Base):
    """One model with one set of options in a job whose inputs differ in them: a batch.

    The inputs of a variant have the job's indexes from `first_index` on, without gaps, in the order of the file. So
    each shard, and each block of vectors, has one variant. A variant with an `error` has no inputs: its lines fail.
    """

    __tablename__ = "job_variants"

    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    # Hash of the model's name and the options as the lines state them.
    key: Mapped[bytes] = mapped_column(Blob)
    alias: Mapped[str] = mapped_column(String(256))
    space: Mapped[str] = mapped_column(String(256))
    dimensions: Mapped[int] = mapped_column(Integer)
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    first_index: Mapped[int] = mapped_column(BigInteger)
    inputs: Mapped[int] = mapped_column(BigInteger)  # counted by the validation
    # What of them is stored as shards, and the hash over it: as Job.upload_hash.
    ingested: Mapped[int] = mapped_column(BigInteger, default=0)
    refused: Mapped[int] = mapped_column(BigInteger, default=0)
    upload_hash: Mapped[bytes | None] = mapped_column(Blob)
    # Why its lines cannot run: {code, message, param, status}. Null: they can.
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class JobStep(Base):
    """The next step of a job that reads or writes files. Leased by one worker at a time; removed after the last one."""

    __tablename__ = "job_steps"

    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    due_at: Mapped[float] = mapped_column(Instant)
    # Fencing token, raised by every claim, as Shard.fence.
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None] = mapped_column(Instant)
    worker: Mapped[str | None] = mapped_column(String(128))
    # Claims since the last progress that was stored; a step that fails again and again ends its job.
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    last_error: Mapped[str | None] = mapped_column(Text)
    # Where the step goes on after a crash; its form is that of the step.
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    __table_args__ = (Index("ix_job_steps_kind_due_at", "kind", "due_at"),)
