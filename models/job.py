"""A job, its shards, and what they leave behind. Both state machines are drawn in docs/job_lifecycle.md.

The text of the inputs lives in its own table, so that a state change never rewrites it, and vectors are one row per
recorded run of neighbouring inputs, never one per vector.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Blob, Instant, Usd


class JobStatus(StrEnum):
    VALIDATING = "validating"  # the corpus is arriving; nothing of it runs yet
    IN_PROGRESS = "in_progress"  # shards run (the corpus may still be arriving)
    PAUSED = "paused"  # nothing of it is claimed until it is resumed: by its caller, or because its budget is spent
    COMPLETED = "completed"  # every input has its vector
    COMPLETED_WITH_ERRORS = "completed_with_errors"  # every input has a vector or an error
    FAILED = "failed"  # the corpus never arrived whole, or no input got a vector
    CANCELLING = "cancelling"  # no new calls; shards that run are letting go
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # it had not ended by its deadline; what was done of it is kept as long as of any other


FINISHED = frozenset(
    {
        JobStatus.COMPLETED,
        JobStatus.COMPLETED_WITH_ERRORS,
        JobStatus.FAILED,
        JobStatus.CANCELLED,
        JobStatus.EXPIRED,
    }
)

# The last of its shards to close ends such a job.
UNDER_WAY = frozenset({JobStatus.IN_PROGRESS, JobStatus.PAUSED})

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
    # Calls that were under way when it was paused still land, and may be the last ones.
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
    # Only by a retry of what failed.
    JobStatus.COMPLETED_WITH_ERRORS: frozenset({JobStatus.IN_PROGRESS}),
    JobStatus.FAILED: frozenset({JobStatus.IN_PROGRESS}),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.EXPIRED: frozenset(),
}


class ShardState(StrEnum):
    QUEUED = "queued"  # waits for its turn; a crash leaves it here
    RUNG = "rung"  # a message about it is in the broker; a lost message is rung again by the sweep
    RUNNING = "running"  # leased by one worker; when the lease runs out the sweep queues it again
    DONE = "done"  # every input of it has an outcome
    CANCELLED = "cancelled"


OPEN_SHARD = frozenset({ShardState.QUEUED, ShardState.RUNG, ShardState.RUNNING})
# A shard that has lost so many workers is halved.
WORKER_LOSSES = 3
IN_TURN = "status = 'in_progress' and blocked_until is null"


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
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    # `metadata` is SQLAlchemy's own name on a declarative class.
    labels: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    request_id: Mapped[str] = mapped_column(String(64))

    total: Mapped[int | None] = mapped_column(BigInteger)  # null until the corpus has been read to its end
    ingested: Mapped[int] = mapped_column(BigInteger, default=0)
    completed: Mapped[int] = mapped_column(BigInteger, default=0)
    failed: Mapped[int] = mapped_column(BigInteger, default=0)
    open_shards: Mapped[int] = mapped_column(Integer, default=0)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    cost_usd: Mapped[Decimal] = mapped_column(Usd, default=Decimal(0))
    usage_estimated: Mapped[bool] = mapped_column(Boolean, default=False)
    error_summary: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    # What a poller should know beside the errors: a quarantined route, say. `{"code", "message"}` each.
    warnings: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list, server_default="[]")
    # Inputs whose text occurred before in the same job: they got that vector, without a call of their own.
    deduplicated: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Inputs with a vector that were not embedded whole.
    truncated: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Calls that were sent and never answered: the provider may have billed them.
    ambiguous_calls: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    ambiguous_inputs: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    ambiguous_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # The most that they can have cost. Not part of cost_usd, but of what max_cost_usd is compared with.
    ambiguous_cost_usd: Mapped[Decimal] = mapped_column(Usd, default=Decimal(0), server_default="0")
    # Billed calls whose replies were refused, came too late, or only tested the route. Their cost is part of cost_usd.
    wasted_calls: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    wasted_inputs: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    wasted_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    wasted_cost_usd: Mapped[Decimal] = mapped_column(Usd, default=Decimal(0), server_default="0")
    # The caller's ceiling. What is spoken for of it is the sum of the running shards' allowances.
    max_cost_usd: Mapped[Decimal | None] = mapped_column(Usd)
    # Estimated tokens of the shards that have had their turn, counted from where the job joined its project's line:
    # whoever has had the fewest is next.
    served_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Claims of its shards, and how many of them ended with the worker's death: evidence of who kills workers.
    runs: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    worker_losses: Mapped[int] = mapped_column(Integer, default=0, server_default="0")

    created_at: Mapped[float] = mapped_column(Instant)
    started_at: Mapped[float | None] = mapped_column(Instant)
    finished_at: Mapped[float | None] = mapped_column(Instant)
    # While it is open, its deadline; once it has ended, when it is removed.
    expires_at: Mapped[float] = mapped_column(Instant)
    deleted_at: Mapped[float | None] = mapped_column(Instant)
    # Somebody downloads its results until then, and says so again while that lasts: nothing of it is removed before.
    read_until: Mapped[float | None] = mapped_column(Instant)

    # While the corpus arrives, the receiving process keeps this lease alive; null afterwards.
    intake_until: Mapped[float | None] = mapped_column(Instant)
    # Who receives the corpus: a process and a request of it. Only the owner adds to the job, and null is nobody: the
    # upload broke off, and waits to be taken up again under its Idempotency-Key.
    intake_owner: Mapped[str | None] = mapped_column(String(192))
    # Of all lines that are stored: whoever takes an upload up again must bring the same.
    intake_hash: Mapped[bytes | None] = mapped_column(Blob)
    intake_refused: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    rung_at: Mapped[float | None] = mapped_column(Instant)  # used by releases that took turns by it
    # Nothing of it is due before this moment, so dispatch passes it over. Never far ahead, so never wrong for long.
    blocked_until: Mapped[float | None] = mapped_column(Instant)
    waiting_on: Mapped[str | None] = mapped_column(String(16))
    next_attempt_at: Mapped[float | None] = mapped_column(Instant)
    # The outage that it waits for: provider, code, message, advice, since (unix seconds). Null when it waits for none.
    waiting: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # Two marks of progress, shifted every 15 s, give a rate over the last 15 to 30 s without any history table.
    mark_at: Mapped[float | None] = mapped_column(Instant)
    mark_done: Mapped[int] = mapped_column(BigInteger, default=0)
    mark_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    earlier_mark_at: Mapped[float | None] = mapped_column(Instant)
    earlier_mark_done: Mapped[int] = mapped_column(BigInteger, default=0)
    earlier_mark_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    # Grows with every change a poller could see: the ETag.
    version: Mapped[int] = mapped_column(BigInteger, default=1)

    __table_args__ = (
        Index("ix_jobs_project_id", "project", "id"),
        Index("ix_jobs_project_status_id", "project", "status", "id"),
        # Jobs that dispatch may take from, in the order of their turns.
        _partial("ix_jobs_turn", "project", "served_tokens", "id", where=IN_TURN),
        _partial("ix_jobs_blocked_until", "blocked_until", where="blocked_until is not null"),
        # What the sweep asks every few seconds is answered without a look at the jobs that are in order.
        Index("ix_jobs_status_open_shards", "status", "open_shards"),
        _partial("ix_jobs_intake_until", "intake_until", where="intake_until is not null"),
        _partial("ix_jobs_expires_at", "expires_at", where="deleted_at is null"),
        _partial("ix_jobs_deleted_at", "deleted_at", where="deleted_at is not null"),
    )


class FairShare(Base):
    """Where one project stands in the line of projects. The row without a name stands for all of them.

    The other two are about the line below: the jobs of the project, or all projects.
    """

    __tablename__ = "fair_shares"

    project: Mapped[str] = mapped_column(String(64), primary_key=True)
    served_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    # Nobody who waited in it stands further back than this: who does was away.
    rear_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    # Where newcomers join it: the middle of the line, which moves on with all that is served.
    joining_tokens: Mapped[int] = mapped_column(BigInteger, default=0)


class Shard(Base):
    """A run of a job's inputs, leased by one worker at a time."""

    __tablename__ = "shards"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"))
    seq: Mapped[int] = mapped_column(Integer)
    first_index: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # estimated
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    # How many claims of it, and of what it was cut from, ended with the worker's death; and how many may, before the
    # sweep halves it, or tries it where one input is left (engine/jobs/maintenance/crashes.py).
    lost: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    lost_limit: Mapped[int] = mapped_column(Integer, default=WORKER_LOSSES, server_default=str(WORKER_LOSSES))
    # When its last input began to stand trial: losses and runs until then, of it and of all.
    solo_trial: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # Grows with every claim: a worker that lost its lease can no longer change the shard's state.
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None] = mapped_column(Instant)
    worker: Mapped[str | None] = mapped_column(String(128))
    next_run_at: Mapped[float] = mapped_column(Instant)
    rung_at: Mapped[float | None] = mapped_column(Instant)
    # Nobody claims it until this shard of its job has closed: it holds the first occurrences of this one's duplicates.
    blocked_by: Mapped[str | None] = mapped_column(String(64))
    # What its present claim may spend of the job's ceiling; null: no ceiling.
    allowance_usd: Mapped[Decimal | None] = mapped_column(Usd)
    # One bit per input that has its outcome: first writer wins, whatever the batches of a later attempt look like.
    settled: Mapped[bytes] = mapped_column(Blob)
    last_error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("uq_shards_job_id_seq", "job_id", "seq", unique=True),
        Index("ix_shards_job_id_state_seq", "job_id", "state", "seq"),
        Index("ix_shards_state_attempt", "state", "attempt"),
        _partial("ix_shards_blocked_by", "blocked_by", where="blocked_by is not null"),
        _partial("ix_shards_crashing", "job_id", where="state = 'queued' and lost >= lost_limit"),
    )


class ShardInputs(Base):
    """The inputs of one shard as they arrived, and the caller's ids where there are any. Both msgpack lists.

    A shard in which every input was refused keeps an empty list.

    An input that is None was refused, or is a twin: a text that occurred before in the job. `twins` holds, for those,
    two msgpack lists of equal length: positions in the shard, and the job's indexes of the first occurrence.
    """

    __tablename__ = "shard_inputs"

    shard_id: Mapped[str] = mapped_column(String(64), ForeignKey("shards.id", ondelete="CASCADE"), primary_key=True)
    inputs: Mapped[bytes] = mapped_column(Blob)
    ids: Mapped[bytes | None] = mapped_column(Blob)
    twins: Mapped[bytes | None] = mapped_column(Blob)


class VectorBlock(Base):
    """Vectors of `count` neighbouring inputs: float32 little-endian rows of the job's width."""

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
    """Inputs that were refused as they arrived, all for one reason: neighbours, or those that `mask` has a bit for.

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
    """Inputs that were not embedded whole: bit i of the mask stands for the index `first_index + i`."""

    __tablename__ = "truncated_inputs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"))
    first_index: Mapped[int] = mapped_column(BigInteger)
    last_index: Mapped[int] = mapped_column(BigInteger)
    mask: Mapped[bytes] = mapped_column(Blob)

    __table_args__ = (Index("ix_truncated_inputs_job_id_first_index", "job_id", "first_index"),)


class AmbiguousCall(Base):
    """An upstream call that was sent and never answered. Rows outlive the job: AMBIGUOUS_RETENTION_DAYS."""

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
    """A caller's promise that two requests are one. `fingerprint` is null while the first is still arriving."""

    __tablename__ = "idempotency_keys"

    project: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(256), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64))
    fingerprint: Mapped[bytes | None] = mapped_column(Blob)
    expires_at: Mapped[float] = mapped_column(Instant)
    # The request that is arriving under it, and until when that is believed without a heartbeat; null: none is.
    owner: Mapped[str | None] = mapped_column(String(192))
    owner_until: Mapped[float | None] = mapped_column(Instant)

    __table_args__ = (
        Index("ix_idempotency_keys_expires_at", "expires_at"),
        Index("ix_idempotency_keys_job_id", "job_id"),
    )
