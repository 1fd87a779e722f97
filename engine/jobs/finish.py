"""Finish: what a job becomes when its last open shard closes, and the tally of its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.embedding import InputError
from models.job import Job, JobStatus

# Decided in SQL, in the statement that closes the last shard, so that no crash can come between.
FINAL_STATUS = case(
    (Job.failed == 0, JobStatus.COMPLETED.value),
    (Job.completed == 0, JobStatus.FAILED.value),
    else_=JobStatus.COMPLETED_WITH_ERRORS.value,
)


def final_status(completed: int, failed: int) -> JobStatus:
    """The same rule for counters at hand."""
    if failed == 0:
        return JobStatus.COMPLETED
    return JobStatus.FAILED if completed == 0 else JobStatus.COMPLETED_WITH_ERRORS


async def merge_errors(
    connection: AsyncConnection, job_id: str, failures: Mapping[int, InputError]
) -> list[dict[str, Any]]:
    """The job's error summary with these failures added: per code a count and one example. Locks the job's row."""
    summary = (
        await connection.execute(select(Job.error_summary).where(Job.id == job_id).with_for_update(key_share=True))
    ).scalar_one_or_none()
    return tally(summary or [], failures)


def tally(summary: Sequence[dict[str, Any]], failures: Mapping[int, InputError]) -> list[dict[str, Any]]:
    """A summary of errors with these added: per code a count, and of its lowest index the message."""
    by_code: dict[str, dict[str, Any]] = {entry["code"]: dict(entry) for entry in summary}
    for index in sorted(failures):
        add_error(by_code, index, failures[index].code, failures[index].message)
    return list(by_code.values())


def add_error(by_code: dict[str, dict[str, Any]], index: int, code: str, message: str) -> None:
    """Count one failure in an error summary."""
    entry = by_code.setdefault(code, {"code": code, "count": 0, "example_index": index, "message": message})
    entry["count"] += 1
    if entry["example_index"] is None or index < entry["example_index"]:
        entry["example_index"], entry["message"] = index, message
