"""Read: one row answers a status poll. Every statement here is bound to the caller's project."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, bindparam, case, false, select

from engine.runtime import Runtime
from models.base import db_now, usd_text
from models.errors import InvalidInput, JobNotFound
from models.job import FINISHED, Job, JobStatus
from models.worker import WorkerProcess

JOB_ID = re.compile(r"job_[0-9a-f]{32}\Z")
POLL_S = (0.05, 0.1, 0.2, 0.3, 0.5)
FRESH_MARK_S = 5.0
# A job that nobody has worked on for so long, though there are workers, waits for its turn.
FIRST_TURN_S = 2.0

# Built once: a poll is the hottest read of all.
_WORKERS_LIVE = select(WorkerProcess.id).where(WorkerProcess.seen_at > db_now() - bindparam("seen_s")).exists()
_COLUMNS = (
    *Job.__table__.columns,
    db_now().label("now"),
    case((Job.started_at.is_(None), _WORKERS_LIVE), else_=false()).label("workers_live"),
)
_ONE = select(*_COLUMNS).where(
    Job.id == bindparam("job_id"), Job.project == bindparam("project"), Job.deleted_at.is_(None)
)


async def find(runtime: Runtime, project: str, job_id: str) -> Row[Any]:
    """The job's row. Raises JobNotFound, in the same words for a foreign, an unknown and a malformed id."""
    row = None
    if JOB_ID.match(job_id):
        async with runtime.database.read() as connection:
            row = (
                await connection.execute(_ONE, {"job_id": job_id, "project": project} | _seen(runtime))
            ).one_or_none()
    if row is None:
        raise JobNotFound("No job found with this id.", param="id")
    return row


def _seen(runtime: Runtime) -> dict[str, float]:
    return {"seen_s": runtime.settings.worker_seen_s}


async def wait_for_change(
    runtime: Runtime,
    project: str,
    job_id: str,
    *,
    wait_s: float,
    seen_etag: str | None,
    gone: Callable[[], Awaitable[bool]],
) -> Row[Any]:
    """The job's row once it differs from what the caller has seen, has finished, or wait_s is over.

    `gone` tells whether the caller has hung up: nobody waits for the dead.
    """
    deadline = time.monotonic() + wait_s
    row = await find(runtime, project, job_id)
    seen = etag(row) if seen_etag is None else seen_etag
    pauses = iter(POLL_S)
    while row.status not in FINISHED and etag(row) == seen:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or await gone():
            break
        await asyncio.sleep(min(left_s, next(pauses, POLL_S[-1])))
        row = await find(runtime, project, job_id)
    return row


async def page(
    runtime: Runtime, project: str, *, limit: int, after: str | None, status: str | None
) -> tuple[Sequence[Row[Any]], bool]:
    """Jobs newest first, after the given id; and whether there are more."""
    statement = select(*_COLUMNS).where(Job.project == project, Job.deleted_at.is_(None))
    if after is not None:
        if not JOB_ID.match(after):
            raise InvalidInput("Invalid 'after': not the id of a job.", param="after", code="invalid_value")
        statement = statement.where(Job.id < after)
    if status is not None:
        statement = statement.where(Job.status == status)
    async with runtime.database.read() as connection:
        rows = (await connection.execute(statement.order_by(Job.id.desc()).limit(limit + 1), _seen(runtime))).all()
    return rows[:limit], len(rows) > limit


def etag(row: Row[Any]) -> str:
    """Changes with everything that a poller could see, also with what changes by time alone: rates, and due times."""
    parts = [str(row.version)]
    if row.status == JobStatus.IN_PROGRESS:
        if row.mark_at is not None:
            parts.append(str(int((row.now - row.mark_at) // 10)))
        parts += [str(part) for part in _waiting(row) if part is not None]
    return f'"{"-".join(parts)}"'


def job_object(row: Row[Any]) -> dict[str, Any]:
    """The job as the contract shows it."""
    done = row.completed + row.failed
    total = row.total
    inputs_per_s, tokens_per_s = _rate(row)
    shown_rate = round(inputs_per_s, 1)
    waiting_on, next_attempt_at = _waiting(row)
    pending = _pending(row)
    body: dict[str, Any] = {
        "id": row.id,
        "object": "embedding.job",
        "status": row.status,
        "model": row.alias,
        "space": row.space,
        "dimensions": row.dimensions,
        "counts": {"total": total, "completed": row.completed, "failed": row.failed, "pending": pending},
        # Rounded down: 1.0 is said of a finished job only.
        "progress": 0.0 if not total else int(done * 10_000 / total) / 10_000,
        "usage": {"prompt_tokens": row.prompt_tokens, "total_tokens": row.prompt_tokens},
        "cost_usd": usd_text(Decimal(row.cost_usd)),
        "max_cost_usd": None if row.max_cost_usd is None else usd_text(row.max_cost_usd),
        "usage_estimated": row.usage_estimated,
        "deduplicated_inputs": row.deduplicated,
        "ambiguous": {"calls": row.ambiguous_calls, "inputs": row.ambiguous_inputs},
        "rate": {"inputs_per_second": shown_rate, "tokens_per_minute": round(tokens_per_s * 60)},
        "eta_seconds": None,
        "waiting_on": waiting_on,
        "next_attempt_at": next_attempt_at,
        "errors": row.error_summary,
        "warnings": row.warnings,
        "created_at": int(row.created_at),
        "started_at": None if row.started_at is None else int(row.started_at),
        "finished_at": None if row.finished_at is None else int(row.finished_at),
        "expires_at": int(row.expires_at),
        "metadata": row.metadata,
        "request_id": row.request_id,
    }
    if row.status in FINISHED:
        body["eta_seconds"] = 0
    elif total is not None and shown_rate > 0:
        body["eta_seconds"] = max(1, round(pending / inputs_per_s))
    return body


def _pending(row: Row[Any]) -> int:
    """Inputs known of that have no outcome yet."""
    known = row.ingested if row.total is None else row.total
    return max(0, int(known) - int(row.completed) - int(row.failed))


def _waiting(row: Row[Any]) -> tuple[str | None, int | None]:
    """What the job waits for, and the second when it may move, where that is known and still to come."""
    if row.status == JobStatus.PAUSED:
        return ("budget" if row.waiting_on == "budget" else None), None
    if row.status != JobStatus.IN_PROGRESS:
        return None, None
    if row.waiting_on is not None:
        is_ahead = row.next_attempt_at is not None and row.next_attempt_at > row.now
        return str(row.waiting_on), math.ceil(row.next_attempt_at) if is_ahead else None
    if row.total is None and _pending(row) == 0:
        return "ingest", None
    if row.workers_live and row.now - row.created_at > FIRST_TURN_S:  # asked of jobs only that nobody has worked on
        return "fairness", None
    return None, None


def _rate(row: Row[Any]) -> tuple[float, float]:
    """Inputs and tokens a second: of the last 15 to 30 s while it runs, of the whole once it has ended."""
    done = row.completed + row.failed
    if row.started_at is None or row.status == JobStatus.PAUSED:
        return 0.0, 0.0
    since, done_then, tokens_then = row.started_at, 0, 0
    until = row.now
    if row.status in FINISHED:
        until = row.finished_at or row.now
    elif row.earlier_mark_at is not None:
        since, done_then, tokens_then = row.earlier_mark_at, row.earlier_mark_done, row.earlier_mark_tokens
    elif row.mark_at is not None and row.now - row.mark_at > FRESH_MARK_S:
        since, done_then, tokens_then = row.mark_at, row.mark_done, row.mark_tokens
    seconds = max(until - since, 0.001)
    return (done - done_then) / seconds, (row.prompt_tokens - tokens_then) / seconds


STATUSES = tuple(JobStatus)
