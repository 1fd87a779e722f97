"""Job rows: one row answers a status poll. Every query for a caller is bound to the caller's project."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, bindparam, case, false, select

from engine.jobs.allowed_actions import job_not_found
from engine.runtime import Runtime
from models.base import db_now, usd_text
from models.errors import InvalidInput
from models.job import FINISHED, Job, JobStatus
from models.worker import WorkerProcess

JOB_ID = re.compile(r"job_[0-9a-f]{32}\Z")
MIN_SAMPLE_AGE_S = 5.0
# A job that is not started after this time, although workers are alive, waits for its turn.
UNSTARTED_AFTER_S = 2.0

# Waits without a known end: the next attempt may fail like the last one.
WAITS_WITHOUT_END = frozenset({"provider", "database", "budget", "fairness", "ingest"})

# Built once: a poll is the most frequent query.
_WORKERS_LIVE = select(WorkerProcess.id).where(WorkerProcess.seen_at > db_now() - bindparam("seen_s")).exists()
_COLUMNS = (
    # A caller's options may be long, and polls and lists do not need them.
    *(column for column in Job.__table__.columns if column.name != "options"),
    db_now().label("now"),
    case((Job.started_at.is_(None), _WORKERS_LIVE), else_=false()).label("workers_live"),
)
_ONE = select(*_COLUMNS).where(
    Job.id == bindparam("job_id"), Job.project == bindparam("project"), Job.deleted_at.is_(None)
)

_MANY = select(*_COLUMNS).where(Job.id.in_(bindparam("job_ids", expanding=True)), Job.deleted_at.is_(None))


async def get_job(runtime: Runtime, project: str, job_id: str) -> Row[Any]:
    """The job's row. Raises JobNotFound, alike for another project's, an unknown and a malformed id."""
    row = None
    if JOB_ID.match(job_id):
        async with runtime.database.read() as connection:
            row = (
                await connection.execute(_ONE, {"job_id": job_id, "project": project} | _seen(runtime))
            ).one_or_none()
    if row is None:
        raise job_not_found()
    return row


def _seen(runtime: Runtime) -> dict[str, float]:
    return {"seen_s": runtime.settings.worker_seen_s}


async def get_jobs(runtime: Runtime, job_ids: Sequence[str]) -> Sequence[Row[Any]]:
    """The rows of these jobs without deleted ones, of any project: the caller has checked the access before."""
    async with runtime.database.read() as connection:
        return (await connection.execute(_MANY, {"job_ids": list(job_ids)} | _seen(runtime))).all()


async def list_jobs(
    runtime: Runtime, project: str, *, limit: int, after_id: str | None, status: str | None
) -> tuple[Sequence[Row[Any]], bool]:
    """A page of jobs, newest first, after the given id; and whether there are more. Raises InvalidInput."""
    statement = select(*_COLUMNS).where(Job.project == project, Job.deleted_at.is_(None))
    if after_id is not None:
        if not JOB_ID.match(after_id):
            raise InvalidInput(
                "Invalid 'after': not the id of a job. Send the last_id of the page before.",
                param="after",
                code="invalid_value",
            )
        statement = statement.where(Job.id < after_id)
    if status is not None:
        statement = statement.where(Job.status == status)
    async with runtime.database.read() as connection:
        rows = (await connection.execute(statement.order_by(Job.id.desc()).limit(limit + 1), _seen(runtime))).all()
    return rows[:limit], len(rows) > limit


def etag(row: Row[Any]) -> str:
    """ETag of a job: changes with everything that a poller sees, also with rates and due times."""
    parts = [str(row.version)]
    if row.status == JobStatus.IN_PROGRESS:
        if row.rate_sample_at is not None:
            parts.append(str(int((row.now - row.rate_sample_at) // 10)))
        parts += [str(part) for part in _waiting_on(row) if part is not None]
    return f'"{"-".join(parts)}"'


def job_object(row: Row[Any]) -> dict[str, Any]:
    """The job as the JSON object of the API."""
    done = row.completed + row.failed
    total = row.total
    inputs_per_s, tokens_per_s = _rate(row)
    shown_rate = round(inputs_per_s, 1)
    waiting_on, next_attempt_at = _waiting_on(row)
    pending = _pending(row)
    body: dict[str, Any] = {
        "id": row.id,
        "object": "embedding.job",
        "status": row.status,
        "model": row.alias,
        "space": row.space,
        "dimensions": row.dimensions,
        "counts": {"total": total, "completed": row.completed, "failed": row.failed, "pending": pending},
        # Rounded down, so that only a finished job has 1.0.
        "progress": 0.0 if not total else int(done * 10_000 / total) / 10_000,
        "usage": {"prompt_tokens": row.prompt_tokens, "total_tokens": row.prompt_tokens},
        "cost_usd": usd_text(Decimal(row.cost_usd)),
        "max_cost_usd": None if row.max_cost_usd is None else usd_text(row.max_cost_usd),
        "usage_estimated": row.usage_estimated,
        "deduplicated_inputs": row.deduplicated,
        "truncated": row.truncated,
        "ambiguous": {
            "calls": row.ambiguous_calls,
            "inputs": row.ambiguous_inputs,
            "tokens": row.ambiguous_tokens,
            "cost_usd": usd_text(Decimal(row.ambiguous_cost_usd)),
        },
        "wasted": {
            "calls": row.wasted_calls,
            "inputs": row.wasted_inputs,
            "tokens": row.wasted_tokens,
            "cost_usd": usd_text(Decimal(row.wasted_cost_usd)),
        },
        "rate": {"inputs_per_second": shown_rate, "tokens_per_minute": round(tokens_per_s * 60)},
        "eta_seconds": _eta(row, inputs_per_s, waiting_on),
        "waiting_on": waiting_on,
        "next_attempt_at": next_attempt_at,
        "waiting": _outage(row),
        "errors": row.error_summary,
        "warnings": row.warnings,
        "created_at": int(row.created_at),
        "started_at": None if row.started_at is None else int(row.started_at),
        "finished_at": None if row.finished_at is None else int(row.finished_at),
        "expires_at": int(row.expires_at),
        "metadata": row.metadata,
        "request_id": row.request_id,
    }
    return body


def _eta(row: Row[Any], inputs_per_s: float, waiting_on: str | None) -> int | None:
    """Seconds until the job ends, including a wait for quota. None without a rate or during an outage."""
    if row.status in FINISHED:
        return 0
    if row.total is None or round(inputs_per_s, 1) <= 0 or waiting_on in WAITS_WITHOUT_END:
        return None
    wait_s = 0.0 if row.next_attempt_at is None or waiting_on is None else max(0.0, row.next_attempt_at - row.now)
    return max(1, round(wait_s + _pending(row) / inputs_per_s))


def _pending(row: Row[Any]) -> int:
    """Number of known inputs without an outcome."""
    known = row.ingested if row.total is None else row.total
    return max(0, int(known) - int(row.completed) - int(row.failed))


def _waiting_on(row: Row[Any]) -> tuple[str | None, int | None]:
    """What the job waits for, and the second in which it may continue, where that is known and in the future."""
    if row.status == JobStatus.PAUSED:
        return ("budget" if row.waiting_on == "budget" else None), None
    if row.status != JobStatus.IN_PROGRESS:
        return None, None
    if row.waiting_on is not None:
        is_ahead = row.next_attempt_at is not None and row.next_attempt_at > row.now
        return str(row.waiting_on), math.ceil(row.next_attempt_at) if is_ahead else None
    if row.total is None and _pending(row) == 0:
        return "ingest", None
    if row.workers_live and row.now - row.created_at > UNSTARTED_AFTER_S:  # only computed for jobs that are not started
        return "fairness", None
    return None, None


def _outage(row: Row[Any]) -> dict[str, Any] | None:
    """The outage that the job waits for, as the JSON object of the API."""
    if row.outage is None or row.status != JobStatus.IN_PROGRESS or row.waiting_on != "provider":
        return None
    names = ("provider", "code", "message", "advice")
    return {name: row.outage[name] for name in names} | {
        "since": int(row.outage["since"]),
        "next_attempt_at": math.ceil(max(row.next_attempt_at or row.now, row.now)),
    }


def _rate(row: Row[Any]) -> tuple[float, float]:
    """Inputs and tokens per second: of the last 15 to 30 s while it runs, of its whole time at its end. 0: unknown."""
    done = row.completed + row.failed
    if row.started_at is None or row.status == JobStatus.PAUSED:
        return 0.0, 0.0
    since, done_then, tokens_then = row.started_at, 0, 0
    until = row.now
    if row.status in FINISHED:
        until = row.finished_at or row.now
    elif row.rate_sample_at is None:  # no results since it was started, resumed or retried
        return 0.0, 0.0
    elif row.prev_rate_sample_at is not None:
        since, done_then, tokens_then = row.prev_rate_sample_at, row.prev_rate_sample_done, row.prev_rate_sample_tokens
    elif row.rate_sample_at is not None and row.now - row.rate_sample_at > MIN_SAMPLE_AGE_S:
        since, done_then, tokens_then = row.rate_sample_at, row.rate_sample_done, row.rate_sample_tokens
    elif row.rate_sample_done:  # it was resumed just now: the rate before the pause says nothing
        return 0.0, 0.0
    seconds = max(until - since, 0.001)
    return (done - done_then) / seconds, (row.prompt_tokens - tokens_then) / seconds


JOB_STATUSES = tuple(JobStatus)
