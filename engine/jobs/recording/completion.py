"""Completion: the final status of a job when its last open shard closes, and the summary of its errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Case, case, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.config.settings import Settings
from engine.observability.telemetry import JOB_SECONDS
from engine.webhooks.job_events import record_job_event
from models.base import db_now
from models.embedding import InputError
from models.job import OPEN_STATES, Job, JobStatus, Shard

log = logging.getLogger("embedmill.jobs")


def final_status_of(completed: Any, failed: Any) -> Case[str]:
    """The final status of a job, for the statement that closes its last shard: no crash can separate the two."""
    return case(
        (failed == 0, JobStatus.COMPLETED.value),
        (completed == 0, JobStatus.FAILED.value),
        else_=JobStatus.COMPLETED_WITH_ERRORS.value,
    )


FINAL_STATUS = final_status_of(Job.completed, Job.failed)

# Checked beside the counter: a counter that is too low would end the job with a shard left open.
NO_OPEN_SHARD = (
    select(Shard.id)
    .where(Shard.job_id == Job.id, Shard.state.in_(sorted(OPEN_STATES)))
    .limit(1)
    .correlate(Job)
    .scalar_subquery()
    .is_(None)
)

DAY_S = 86400.0


def end_columns(settings: Settings) -> dict[str, Any]:
    """Columns of a job that ends now: the retention of its results starts."""
    return {
        "finished_at": db_now(),
        "expires_at": db_now() + settings.job_retention_days * DAY_S,
        "waiting_on": None,
        "next_attempt_at": None,
    }


async def recount_open_shards(connection: AsyncConnection, job_id: str) -> None:
    """Count the job's open shards again because its counter was too low. For a transaction that has locked its row."""
    open_shards = (
        select(func.count())
        .select_from(Shard)
        .where(Shard.job_id == job_id, Shard.state.in_(sorted(OPEN_STATES)))
        .scalar_subquery()
    )
    await connection.execute(update(Job).where(Job.id == job_id).values(open_shards=open_shards))
    log.error("a job's counter of open shards was too low, and was counted anew", extra={"job_id": job_id})


async def report_end(connection: AsyncConnection, job_id: str, status: str, *, age_s: float) -> None:
    """Report that this transaction has ended a job: to the metrics, and to the webhooks that subscribe to it."""
    JOB_SECONDS.labels(status).observe(max(0.0, float(age_s)))
    await record_job_event(connection, job_id)


def final_status(completed: int, failed: int) -> JobStatus:
    """FINAL_STATUS for known counters."""
    if failed == 0:
        return JobStatus.COMPLETED
    return JobStatus.FAILED if completed == 0 else JobStatus.COMPLETED_WITH_ERRORS


async def load_and_merge_errors(
    connection: AsyncConnection, job_id: str, failures: Mapping[int, InputError]
) -> list[dict[str, Any]]:
    """The job's error summary with these failures added: by code, a count and one example. Locks the job's row."""
    summary = (
        await connection.execute(select(Job.error_summary).where(Job.id == job_id).with_for_update(key_share=True))
    ).scalar_one_or_none()
    return merge_error_summary(summary or [], failures)


def merge_error_summary(summary: Sequence[dict[str, Any]], failures: Mapping[int, InputError]) -> list[dict[str, Any]]:
    """An error summary with these failures added: by code, a count and the message of the lowest index."""
    by_code: dict[str, dict[str, Any]] = {entry["code"]: dict(entry) for entry in summary}
    for index in sorted(failures):
        count_error(by_code, index, failures[index].code, failures[index].message)
    return list(by_code.values())


def count_error(by_code: dict[str, dict[str, Any]], index: int, code: str, message: str, *, count: int = 1) -> None:
    """Add `count` failures of one code to an error summary; `index` is the lowest of them."""
    entry = by_code.setdefault(code, {"code": code, "count": 0, "example_index": index, "message": message})
    entry["count"] += count
    if entry["example_index"] is None or index < entry["example_index"]:
        entry["example_index"], entry["message"] = index, message
