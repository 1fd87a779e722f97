"""GET /v1/embeddings/jobs and GET /v1/embeddings/jobs/{job_id}: list jobs, poll one of them."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from api.http import params
from api.http.auth import budgets_of, caller_of, runtime_of
from api.http.json_response import json_response, page_response
from api.jobs.render import job_object, poll_headers
from engine.jobs.reading import job_rows
from engine.jobs.reading.long_poll import JobWatches
from models.errors import InvalidInput

WAIT_CEILING_S = 60


async def list_jobs(request: Request) -> Response:
    """A page of the project's jobs, newest first."""
    params.reject_unknown_params(request, "limit", "after", "status")
    limit = params.int_param(request, "limit", default=20, low=1, high=100) or 20
    status = request.query_params.get("status")
    if status is not None and status not in job_rows.JOB_STATUSES:
        raise InvalidInput(
            f"Invalid 'status': supported are {', '.join(job_rows.JOB_STATUSES)}.", param="status", code="invalid_value"
        )
    rows, has_more = await job_rows.list_jobs(
        runtime_of(request).store,
        caller_of(request).project,
        limit=limit,
        after_id=request.query_params.get("after"),
        status=status,
    )
    return page_response([job_object(row) for row in rows], has_more=has_more)


async def get_job(request: Request) -> Response:
    """The job object; 304 when the caller's ETag still holds; with `wait` after the next change."""
    store, project, job_id = runtime_of(request).store, caller_of(request).project, request.path_params["job_id"]
    seen_etags = request.headers.get("if-none-match")
    if request.query_params:
        params.reject_unknown_params(request, "wait")
    if "wait" in request.query_params:
        wait_s = params.int_param(request, "wait", low=0, high=WAIT_CEILING_S) or 0
        watches: JobWatches = request.app.state.watches
        with budgets_of(request).polls.hold(caller_of(request).key_id):
            row = await watches.wait_for_change(
                project,
                job_id,
                wait_s=wait_s,
                seen_etag=_first_tag(seen_etags),
                client_disconnected=request.is_disconnected,
            )
    else:
        row = await job_rows.get_job(store, project, job_id)
    etag = job_rows.etag(row)
    if seen_etags is not None and _matches(seen_etags, etag):
        return Response(status_code=304, headers=poll_headers(row, etag))
    return json_response(job_object(row), headers=poll_headers(row, etag))


def _first_tag(header: str | None) -> str | None:
    return None if header is None else header.split(",")[0].strip().removeprefix("W/")


def _matches(if_none_match: str, etag: str) -> bool:
    """True when the header names the ETag, or `*`. Weak and strong tags compare alike."""
    return if_none_match.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
