"""The job object as an HTTP answer, with the headers that a poller needs."""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import Row
from starlette.responses import Response

from engine.jobs.reading import job_rows
from models.job import FINISHED

POLL_AGAIN_S = 1


def job_response(row: Row[Any], status: int, headers: dict[str, str]) -> Response:
    """The job object of a row, with the headers of a poll."""
    return json_response(job_rows.job_object(row), status, poll_headers(row, job_rows.etag(row)) | headers)


def poll_headers(row: Row[Any], tag: str) -> dict[str, str]:
    """ETag, cache control, and Retry-After while the job is not finished."""
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if row.status not in FINISHED:
        headers["retry-after"] = str(POLL_AGAIN_S)
    return headers


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body` as JSON."""
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")


def job_path(job_id: str) -> str:
    """The URL path of a job."""
    return f"/v1/embeddings/jobs/{job_id}"
