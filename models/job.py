"""Jobs, shards and their results. docs/job_lifecycle.md draws both state machines.

The text of the inputs has a table of its own, so that a state change does not rewrite it. Vectors are stored as one row
per block of consecutive inputs, not one per vector.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Blob, Instant, Usd


class JobStatus(StrEnum):
    """The states of a job. Each comment says what moves a job in and out, and what a crash leaves behind.

    Whoever changes the status does so in one UPDATE that names the states it may come from (LEGAL_MOVES), so two
    writers cannot both succeed. The sweep (engine/jobs/maintenance/sweep.py) completes what a crash interrupts.
    """

    # In: a batch, until its file has been validated. Other jobs are inserted in progress. Out: the end of the
    # validation; a cancel; the sweep at the deadline. A crash leaves the step that another worker claims.
    VALIDATING = "validating"
    # In: the intake with the first shard, a resume, or a retry. Out: the record that closes the last shard once `total`
    # is known; a pause; a cancel; the sweep at the deadline. A crash leaves shards that the sweep requeues.
    IN_PROGRESS = "in_progress"
    # In: the caller's pause, or a run whose budget is exhausted. Out: resume or cancel, the sweep at the deadline,
    # or results that arrive late and are the last ones. No shard of a paused job is claimed.
    PAUSED = "paused"
    # In: the record that closes the last shard, or the sweep, when each input has its vector. Final.
    COMPLETED = "completed"
    # In: as COMPLETED, when some inputs have an error instead. Out: only a retry of the failed inputs.
    COMPLETED_WITH_ERRORS = "completed_with_errors"
    # In: as COMPLETED, when no input has a vector; or the sweep, when the upload was not completed. Out: only a retry.
    FAILED = "failed"
    # In: a cancel while shards are running. Out: the last worker that releases its shard, or the sweep. No new calls.
    CANCELLING = "cancelling"
    # In: from CANCELLING, once no shard is open. Final; results so far stay readable.
    CANCELLED = "cancelled"
    # In: the sweep, when the job has not ended by `expires_at`. Final; results so far stay readable.
    EXPIRED = "expired"


FINISHED = frozenset(
    {
        JobStatus.COMPLETED,
        JobStatus.COMPLETED_WITH_ERRORS,
        JobStatus.FAILED,
        JobStatus.CANCELLED,
        JobStatus.EXPIRED,
    }
)

# Statuses in which a job ends as soon as its last shard closes.
ACTIVE_STATUSES = frozenset({JobStatus.IN_PROGRESS, JobStatus.PAUSED})

LEGAL_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING: frozenset(
        {JobStatus.IN_PROGRESS, JobStatus.FAILED, JobStatus.CANCELLING, JobStatus.CANCELLED, JobStatus.EXPIRED}
    ),
    JobStatus.IN_PROGRESS: frozenset(
        {
            JobStatus.PAUSED,
            JobStatus.COMPLETED,
            JobStatus.COMPLETED_WITH_ERRORS,
            JobStatus.FAILED,
            JobStatus.CANCELLING,
            JobStatus.CANCELLED,
            JobStatus.EXPIRED,
        }
    ),
    # Results of calls that were in flight when it was paused are still recorded, and may be the last ones.
    JobStatus.PAUSED: frozenset(
        {
            JobStatus.IN_PROGRESS,
            JobStatus.COMPLETED,
            JobStatus.COMPLETED_WITH_ERRORS,
            JobStatus.FAILED,
            JobStatus.CANCELLING,
            JobStatus.CANCELLED,
            JobStatus.EXPIRED,
        }
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.COMPLETED: frozenset(),
    # Only a retry of the failed inputs leads out of these two.
    JobStatus.COMPLETED_WITH_ERRORS: frozenset({JobStatus.IN_PROGRESS}),
    JobStatus.FAILED: frozenset({JobStatus.IN_PROGRESS}),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.EXPIRED: frozenset(),
}


class ShardState(StrEnum):
    """The states of a shard. Each comment says what moves a shard in and out, and what a crash leaves behind."""

    # In: the intake, a release, a retry, or the sweep after a lost worker. Out: a worker claims it, or the job ends.
    # A crash leaves it as it is, and the next claim finds it.
    QUEUED = "queued"
    # In: a claim, which leases it to one worker and raises the fence. Out: the last outcome is recorded, or the worker
    # releases it. A crash leaves the lease, and the sweep queues the shard again once the lease has run out.
    RUNNING = "running"
    # In: the record that stores the outcome of its last open input. Out: only a retry of failed inputs.
    DONE = "done"
    # In: the job was cancelled, failed or expired while the shard was open. Final.
    CANCELLED = "cancelled"


OPEN_STATES = frozenset({ShardState.QUEUED, ShardState.RUNNING})
# Workers that a shard may crash before the sweep splits it.
MAX_WORKER_CRASHES = 3
# Jobs whose shards may be claimed: the predicate of their index.
RUNNABLE = "status = 'in_progress' and not_before is null"


def _partial(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


class Job(Base):
    """A caller's bulk request. Its row alone answers a status poll."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(24))
    alias: Mapped[str] = mapped_column(String(256))
    space: Mapped[str] = mapped_column(String(256))
    dimensions: Mapped[int] = mapped_column(Integer)
    # The meaning of its inputs; in the options too, which polls do not read.
    input_type: Mapped[str | None] = mapped_column(String(128))
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    # The caller's metadata. `metadata` is SQLAlchemy's own name on a declarative class.
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    request_id: Mapped[str] = mapped_column(String(64))
    batch_id: Mapped[str | None] = mapped_column(String(64))  # the batch that it runs
    input_file_id: Mapped[str | None] = mapped_column(String(64))  # the file that its corpus is read from

    total: Mapped[int | None] = mapped_column(BigInteger)  # null until the corpus has been read to its end
    ingested: Mapped[int] = mapped_column(BigInteger, default=0)
    completed: Mapped[int] = mapped_column(BigInteger, default=0)
    failed: Mapped[int] = mapped_column(BigInteger, default=0)
    open_shards: Mapped[int] = mapped_column(Integer, default=0)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    cost_usd: Mapped[Decimal] = mapped_column(Usd, default=Decimal(0))
    usage_estimated: Mapped[bool] = mapped_column(Boolean, default=False)
    error_summary: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    # Facts for the caller that are no errors of inputs, such as a quarantined route: `{"code", "message"}` each.
    warnings: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list, server_default="[]")
    # Inputs that got the vector of an equal earlier input of the same job, without an upstream call.
    deduplicated: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Inputs with a vector of only a part of their text.
    truncated: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Calls that were sent and not answered: the provider may have billed them.
    ambiguous_calls: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    ambiguous_inputs: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    ambiguous_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Upper bound of their cost. Not part of cost_usd, but counted against max_cost_usd.
    ambiguous_cost_usd: Mapped[Decimal] = mapped_column(Usd, default=Decimal(0), server_default="0")
    # Billed calls whose vectors were not stored: a refused reply, a late one, a probe. Their cost is part of cost_usd.
    wasted_calls: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    wasted_inputs: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    wasted_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    wasted_cost_usd: Mapped[Decimal] = mapped_column(Usd, default=Decimal(0), server_default="0")
    # The caller's limit of cost. Running shards reserve parts of it: Shard.reserved_usd.
    max_cost_usd: Mapped[Decimal | None] = mapped_column(Usd)
    # Fair queuing: the job's start position plus the estimated tokens of its claimed shards. The lowest is served next.
    virtual_time: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Claims of its shards, and how many of these ended with the crash of the worker: evidence about crashing inputs.
    shard_claims: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    worker_crashes: Mapped[int] = mapped_column(Integer, default=0, server_default="0")

    created_at: Mapped[float] = mapped_column(Instant)
    started_at: Mapped[float | None] = mapped_column(Instant)
    finished_at: Mapped[float | None] = mapped_column(Instant)
    # The deadline of an open job; the end of the retention of a finished one.
    expires_at: Mapped[float] = mapped_column(Instant)
    deleted_at: Mapped[float | None] = mapped_column(Instant)
    # Lease of the readers of its results, renewed while a download lasts. Purge removes nothing before it has run out.
    read_until: Mapped[float | None] = mapped_column(Instant)

    # Lease of the request that uploads the corpus; null once the corpus is complete.
    upload_lease_until: Mapped[float | None] = mapped_column(Instant)
    # Process and request that upload the corpus. Only the owner may add to the job. Null after an interrupted upload,
    # which a request with the same Idempotency-Key may continue.
    upload_owner: Mapped[str | None] = mapped_column(String(192))
    # Hash of all stored lines: a request that continues the upload must send the same lines first.
    upload_hash: Mapped[bytes | None] = mapped_column(Blob)
    upload_refused_inputs: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Claims skip the job until this instant. At most 15 s ahead, because nothing lowers it when a shard becomes due
    # earlier.
    not_before: Mapped[float | None] = mapped_column(Instant)
    waiting_on: Mapped[str | None] = mapped_column(String(16))
    next_attempt_at: Mapped[float | None] = mapped_column(Instant)
    # The outage that the job waits for: provider, code, message, advice, since (unix seconds). Null without one.
    outage: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # Two samples of progress, shifted every 15 s: they give the rate of the last 15 to 30 s without a history table.
    rate_sample_at: Mapped[float | None] = mapped_column(Instant)
    rate_sample_done: Mapped[int] = mapped_column(BigInteger, default=0)
    rate_sample_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    prev_rate_sample_at: Mapped[float | None] = mapped_column(Instant)
    prev_rate_sample_done: Mapped[int] = mapped_column(BigInteger, default=0)
    prev_rate_sample_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    # Grows with every change that a poller can see: the ETag.
    version: Mapped[int] = mapped_column(BigInteger, default=1)

    __table_args__ = (
        Index("ix_jobs_project_id", "project", "id"),
        Index("ix_jobs_project_status_id", "project", "status", "id"),
        # Jobs whose shards may be claimed, in their order of service.
        _partial("ix_jobs_virtual_time", "project", "virtual_time", "id", where=RUNNABLE),
        _partial("ix_jobs_not_before", "not_before", where="not_before is not null"),
        # Lets the sweep find unfinished jobs without reading all others.
        Index("ix_jobs_status_open_shards", "status", "open_shards"),
        _partial("ix_jobs_upload_lease_until", "upload_lease_until", where="upload_lease_until is not null"),
        _partial("ix_jobs_expires_at", "expires_at", where="deleted_at is null"),
        _partial("ix_jobs_deleted_at", "deleted_at", where="deleted_at is not null"),
    )


class FairShare(Base):
    """Fair-queuing clock of one project (start-time fair queuing, decision 11). Project '' is the global clock.

    `virtual_time` orders the projects. `min_virtual_time` and `start_virtual_time` apply one level below: to the jobs
    of the project, or, in the row of the global clock, to the projects.
    """

    __tablename__ = "fair_shares"

    project: Mapped[str] = mapped_column(String(64), primary_key=True)
    virtual_time: Mapped[int] = mapped_column(BigInteger, default=0)  # start position plus tokens of claimed shards
    # Lower bound of the virtual time of everything that has been runnable without a pause. What is found below it was
    # idle, and is raised to it.
    min_virtual_time: Mapped[int] = mapped_column(BigInteger, default=0)
    # Where new jobs start. It advances with the tokens that are served.
    start_virtual_time: Mapped[int] = mapped_column(BigInteger, default=0)


class Shard(Base):
    """Consecutive inputs of a job, leased by one worker at a time. `first_index` orders the shards of a job."""

    __tablename__ = "shards"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"))
    first_index: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    # Number of the JobVariant whose model and options its inputs have; null: those of the job.
    variant: Mapped[int | None] = mapped_column(Integer)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # estimated
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    # Claims of the shard, and of the shard that it was split from, that ended with the crash of the worker; and how
    # many may, before the sweep splits it or tests its last input (engine/jobs/maintenance/crashing_inputs.py).
    worker_crashes: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    crash_limit: Mapped[int] = mapped_column(
        Integer, default=MAX_WORKER_CRASHES, server_default=str(MAX_WORKER_CRASHES)
    )
    # Counters at the start of the test of its last open input: `shard_crashes` of the shard, `claims` and `crashes` of
    # all jobs, `at` (unix seconds).
    solo_baseline: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # Fencing token, raised by every claim: a worker that lost its lease can no longer change the shard's state.
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None] = mapped_column(Instant)
    worker: Mapped[str | None] = mapped_column(String(128))
    next_run_at: Mapped[float] = mapped_column(Instant)
    # The shard with the first occurrences of this one's duplicates: this one is not claimed until that one has closed.
    blocked_by: Mapped[str | None] = mapped_column(String(64))
    # Part of the job's max_cost_usd that the present claim may spend; null without a limit.
    reserved_usd: Mapped[Decimal | None] = mapped_column(Usd)
    # One bit per input, set once the input has its outcome. The first writer wins.
    outcome_bitmap: Mapped[bytes] = mapped_column(Blob)
    last_error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("uq_shards_job_id_first_index", "job_id", "first_index", unique=True),
        Index("ix_shards_job_id_state_first_index", "job_id", "state", "first_index"),
        Index("ix_shards_state_attempt", "state", "attempt"),
        _partial("ix_shards_blocked_by", "blocked_by", where="blocked_by is not null"),
        _partial("ix_shards_crashing", "job_id", where="state = 'queued' and worker_crashes >= crash_limit"),
    )


class ShardInputs(Base):
    """The inputs of one shard as they arrived, and the caller's ids where there are any: two msgpack lists.

    An input is None where it was refused, or where it is a duplicate: its text occurred before in the job. `duplicates`
    holds two msgpack lists of equal length: positions in the shard, and the job's indexes of the first occurrences.
    A shard in which every input was refused keeps an empty list of inputs.
    """

    __tablename__ = "shard_inputs"

    shard_id: Mapped[str] = mapped_column(String(64), ForeignKey("shards.id", ondelete="CASCADE"), primary_key=True)
    inputs: Mapped[bytes] = mapped_column(Blob)
    ids: Mapped[bytes | None] = mapped_column(Blob)
    duplicates: Mapped[bytes | None] = mapped_column(Blob)


class VectorBlock(Base):
    """Vectors of `count` consecutive inputs: float32 little-endian rows of the width of the job, or of the variant."""

    __tablename__ = "vectors"

    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    first_index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(Integer)
    data: Mapped[bytes] = mapped_column(Blob)


class JobInputError(Base):
    """Why one input of a job has no vector."""

    __tablename__ = "input_errors"

    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    code: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    retryable: Mapped[bool] = mapped_column(Boolean, default=False)


class RefusedInputs(Base):
    """Inputs that were refused on arrival for one reason: consecutive ones, or those that `mask` has a bit for.

    Bit i of the mask stands for the index `first_index + i`; null: all `count` indexes from the first on.
    """

    __tablename__ = "refused_inputs"

    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    first_index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    last_index: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int] = mapped_column(BigInteger)
    code: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    mask: Mapped[bytes | None] = mapped_column(Blob)


class TruncatedInputs(Base):
    """Inputs of which only a part was embedded: bit i of the mask stands for the index `first_index + i`."""

    __tablename__ = "truncated_inputs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"))
    first_index: Mapped[int] = mapped_column(BigInteger)
    last_index: Mapped[int] = mapped_column(BigInteger)
    mask: Mapped[bytes] = mapped_column(Blob)

    __table_args__ = (Index("ix_truncated_inputs_job_id_first_index", "job_id", "first_index"),)


class AmbiguousCall(Base):
    """An upstream call that was sent and not answered. Rows outlive the job: AMBIGUOUS_RETENTION_DAYS."""

    __tablename__ = "ambiguous_calls"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(String(64))
    shard_id: Mapped[str] = mapped_column(String(64))
    provider: Mapped[str] = mapped_column(String(64))
    upstream_model: Mapped[str] = mapped_column(String(256))
    inputs: Mapped[int] = mapped_column(Integer)
    at: Mapped[float] = mapped_column(Instant)
    reason: Mapped[str] = mapped_column(String(64))  # the error's code, or worker_lost

    __table_args__ = (
        Index("ix_ambiguous_calls_job_id", "job_id"),
        Index("ix_ambiguous_calls_project_at", "project", "at"),
        Index("ix_ambiguous_calls_at", "at"),
    )


class IdempotencyKey(Base):
    """A caller's key for one request, sent once or repeatedly. `fingerprint` is null while the body still arrives."""

    __tablename__ = "idempotency_keys"

    project: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(256), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64))
    fingerprint: Mapped[bytes | None] = mapped_column(Blob)
    expires_at: Mapped[float] = mapped_column(Instant)
    # The request whose body arrives under the key, and the end of its lease; null: none.
    owner: Mapped[str | None] = mapped_column(String(192))
    owner_until: Mapped[float | None] = mapped_column(Instant)

    __table_args__ = (
        Index("ix_idempotency_keys_expires_at", "expires_at"),
        Index("ix_idempotency_keys_job_id", "job_id"),
    )
