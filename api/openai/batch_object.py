"""The batch object: OpenAI's, with all keys, and the id of the job that runs it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from engine.batches.lines import ENDPOINT, MAX_INPUTS_PER_LINE
from models.batch import BatchStatus
from models.job import FINISHED

_INSTANTS = (
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
# Their lines are counted; those of the others are derived from the counters of the job.
_COUNTED = frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


def batch_object(row: Row[Any]) -> dict[str, Any]:
    """The batch as the JSON object of the API, from a row of batch_rows."""
    status, finalizing_at = row.status, row.finalizing_at
    if status == BatchStatus.IN_PROGRESS and row.job_status in FINISHED:
        status = BatchStatus.FINALIZING
    if finalizing_at is None and status in (BatchStatus.FINALIZING, BatchStatus.COMPLETED):
        finalizing_at = row.finished_at
    instants = {name: _unix(getattr(row, name)) for name in _INSTANTS} | {"finalizing_at": _unix(finalizing_at)}
    completed, failed = _done(row)
    errors = {"object": "list", "data": row.errors} if row.errors else None
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": ENDPOINT,
        "model": row.model or None,
        "errors": errors,
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": status,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        "created_at": int(row.created_at),
        **instants,
        "request_counts": {"total": row.total, "completed": completed, "failed": failed},
        "usage": {
            "input_tokens": row.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": row.prompt_tokens,
        },
        "metadata": row.metadata,
        "job_id": row.job_id,
        "error_count": row.error_count,
    }


def _done(row: Row[Any]) -> tuple[int, int]:
    """Lines that are completed and failed: at least so many, while it runs, and exactly where each has one input.

    An input that is missing or failed spoils one line at the most, and a line has a bounded number of inputs; so
    neither number is ever more than at the end.
    """
    if row.status in _COUNTED:
        return row.completed, row.failed
    lines = row.total - row.refused
    completed = max(0, lines - (row.inputs - row.job_completed))
    failed = row.job_failed if row.inputs == lines else -(-row.job_failed // MAX_INPUTS_PER_LINE)
    return completed, row.refused + failed


def _unix(instant: float | None) -> int | None:
    return None if instant is None else int(instant)
