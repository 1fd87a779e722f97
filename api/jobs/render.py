"""The job object as an HTTP answer, with the headers that a poller needs."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import Row
from starlette.responses import Response

from api.http.json_response import json_response
from engine.jobs.reading import job_rows, progress
from models.base import usd_text
from models.job import FINISHED

POLL_AGAIN_S = 1


def job_response(
    row: Row[Any], status: int, headers: dict[str, str], *, more: Mapping[str, Any] | None = None
) -> Response:
    """The job object of a row, with the headers of a poll. `more`: what this answer alone has beside it."""
    return json_response(job_object(row) | dict(more or {}), status, poll_headers(row, job_rows.etag(row)) | headers)


def poll_headers(row: Row[Any], tag: str) -> dict[str, str]:
    """ETag, cache control, and Retry-After while the job is not finished."""
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if row.status not in FINISHED:
        headers["retry-after"] = str(POLL_AGAIN_S)
    return headers


def job_path(job_id: str) -> str:
    """The URL path of a job."""
    return f"/v1/embeddings/jobs/{job_id}"


def job_object(row: Row[Any]) -> dict[str, Any]:
    """The job as the JSON object of the API, from its row with the database's time."""
    done = row.completed + row.failed
    total = row.total
    inputs_per_s, tokens_per_s = progress.rate(row)
    shown_rate = round(inputs_per_s, 1)
    waiting_on, next_attempt_at = progress.waiting_on(row)
    pending = progress.pending(row)
    body: dict[str, Any] = {
        "id": row.id,
        "object": "embedding.job",
        "status": row.status,
        # Null while a batch is validated, and where its requests have different models.
        "model": row.alias or None,
        "space": row.space or None,
        "dimensions": row.dimensions or None,
        "input_type": row.input_type,
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
        "eta_seconds": progress.eta_s(row, inputs_per_s, waiting_on),
        "waiting_on": waiting_on,
        "next_attempt_at": next_attempt_at,
        "waiting": progress.outage(row),
        "errors": row.error_summary,
        "warnings": row.warnings,
        "created_at": int(row.created_at),
        "started_at": None if row.started_at is None else int(row.started_at),
        "finished_at": None if row.finished_at is None else int(row.finished_at),
        "expires_at": int(row.expires_at),
        "metadata": row.metadata,
        "request_id": row.request_id,
        "batch_id": row.batch_id,
        "input_file_id": row.input_file_id,
    }
    return body
