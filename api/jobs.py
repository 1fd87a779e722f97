"""/v1/embeddings/jobs: submit a corpus, poll it, read its results, end it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import msgspec
from fastapi import Request
from starlette.responses import Response

from api import bodies
from api.budgets import BudgetedStream
from api.compression import VARY, chosen_coding, compressed_stream, must_compress
from api.guard import budgets_of, caller_of, runtime_of
from api.job_replies import job_response, json_response, poll_headers
from api.schemas import ResumeRequest, decode
from api.submission import create_job
from engine.jobs.control import pause_resume, retry, termination
from engine.jobs.reading import job_rows, read_leases, results
from engine.jobs.reading.long_poll import JobWatches
from engine.jobs.reading.results import IndexRange
from engine.jobs.recording import budget
from engine.runtime import Runtime
from models.errors import InvalidInput

_RESUME = msgspec.json.Decoder(ResumeRequest)
WAIT_CEILING_S = 60
MOST_OPTIONS_BYTES = 4096

NDJSON = "application/x-ndjson"
Body = AsyncIterator[bytes | memoryview] | AsyncIterator[bytes]


async def list_jobs(request: Request) -> Response:
    bodies.only(request, "limit", "after", "status")
    limit = bodies.integer(request, "limit", default=20, low=1, high=100) or 20
    status = request.query_params.get("status")
    if status is not None and status not in job_rows.JOB_STATUSES:
        raise InvalidInput(
            f"Invalid 'status': supported are {', '.join(job_rows.JOB_STATUSES)}.", param="status", code="invalid_value"
        )
    rows, more = await job_rows.list_jobs(
        runtime_of(request),
        caller_of(request).project,
        limit=limit,
        after_id=request.query_params.get("after"),
        status=status,
    )
    data = [job_rows.job_object(row) for row in rows]
    return json_response(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": more,
        }
    )


async def get_job(request: Request) -> Response:
    runtime, project, job_id = runtime_of(request), caller_of(request).project, request.path_params["job_id"]
    seen = request.headers.get("if-none-match")
    if request.query_params:
        bodies.only(request, "wait")
    if "wait" in request.query_params:
        wait_s = bodies.integer(request, "wait", low=0, high=WAIT_CEILING_S) or 0
        watches: JobWatches = request.app.state.watches
        with budgets_of(request).polls.taken(caller_of(request).key_id):
            row = await watches.wait_for_change(
                project, job_id, wait_s=wait_s, seen_etag=_first_tag(seen), client_disconnected=request.is_disconnected
            )
    else:
        row = await job_rows.get_job(runtime, project, job_id)
    tag = job_rows.etag(row)
    if seen is not None and (seen.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in seen.split(","))):
        return Response(status_code=304, headers=poll_headers(row, tag))
    return job_response(row, 200, {})


async def get_results(request: Request) -> Response:
    bodies.only(request, "format", "encoding_format", "start", "stop")
    return await _stream(request, _start_results)


async def _start_results(request: Request) -> tuple[Body, str, dict[str, str]]:
    runtime = runtime_of(request)
    job = await job_rows.get_job(runtime, caller_of(request).project, request.path_params["job_id"])
    shape = _one_of(request, "format", ("ndjson", "npy"))
    encoding = _one_of(request, "encoding_format", ("float", "base64"))
    start = bodies.integer(request, "start")
    stop = bodies.integer(request, "stop")
    if start is not None and stop is not None and stop < start:
        raise InvalidInput("Invalid 'stop': must not be less than start.", param="stop", code="invalid_value")
    await read_leases.acquire_read_lease(runtime, job)
    wanted = IndexRange.of(job, start, stop)
    complete = await results.is_complete(runtime, job, wanted, stop)
    headers = {"x-embedmill-complete": "true" if complete else "false", "cache-control": "no-store"}
    body: Body
    if shape == "npy":
        headers["content-length"] = str(results.npy_bytes(job, wanted))
        body, media = results.npy(runtime, job, wanted, complete=complete), "application/octet-stream"
    else:
        body = results.ndjson(runtime, job, wanted, encoding, complete=complete)
        media = NDJSON
    headers["content-disposition"] = f'attachment; filename="{job.id}.{shape}"'
    return read_leases.renew_while_reading(runtime, job.id, body), media, headers


async def get_errors(request: Request) -> Response:
    bodies.only(request)
    return await _stream(request, _start_errors)


async def _start_errors(request: Request) -> tuple[Body, str, dict[str, str]]:
    runtime = runtime_of(request)
    job = await job_rows.get_job(runtime, caller_of(request).project, request.path_params["job_id"])
    await read_leases.acquire_read_lease(runtime, job)
    body = read_leases.renew_while_reading(runtime, job.id, results.errors_ndjson(runtime, job))
    return body, NDJSON, {}


async def _stream(
    request: Request, start: Callable[[Request], Awaitable[tuple[Body, str, dict[str, str]]]]
) -> Response:
    """What `start` makes, as a stream; refused before anything is read when there are too many of them."""
    streams, key_id = budgets_of(request).streams, caller_of(request).key_id
    streams.take(key_id)
    try:
        body, media, headers = await start(request)
    except BaseException:
        streams.give_back(key_id)
        raise
    shrinks = media == NDJSON and request.query_params.get("encoding_format") != "base64"
    if shrinks or must_compress(request):
        headers |= VARY
        if coding := chosen_coding(request):
            headers.pop("content-length", None)
            body, headers = compressed_stream(coding, body), headers | {"content-encoding": coding}
    return BudgetedStream(streams, key_id, body, media_type=media, headers=headers)


async def cancel_job(request: Request) -> Response:
    return await _steered(request, termination.cancel)


async def pause_job(request: Request) -> Response:
    return await _steered(request, pause_resume.pause)


async def resume_job(request: Request) -> Response:
    bodies.only(request)
    body = await bodies.read(request, MOST_OPTIONS_BYTES)
    asked = decode(_RESUME, body) if body.strip() else ResumeRequest()
    ceiling = None if asked.max_cost_usd is None else budget.parse_max_cost(asked.max_cost_usd)
    return await _steered(request, partial(pause_resume.resume, max_cost_usd=ceiling))


async def retry_job(request: Request) -> Response:
    return await _steered(request, retry.retry)


async def _steered(request: Request, verb: Callable[[Runtime, str, str], Awaitable[None]]) -> Response:
    """Do something about the job, and answer with what it is then."""
    bodies.only(request)
    runtime, project, job_id = runtime_of(request), caller_of(request).project, request.path_params["job_id"]
    await verb(runtime, project, job_id)
    return job_response(await job_rows.get_job(runtime, project, job_id), 200, {})


async def delete_job(request: Request) -> Response:
    job_id = request.path_params["job_id"]
    await termination.delete_job(runtime_of(request), caller_of(request).project, job_id)
    return json_response({"id": job_id, "object": "embedding.job", "deleted": True})


def _one_of(request: Request, name: str, values: tuple[str, ...]) -> str:
    value = request.query_params.get(name, values[0])
    if value not in values:
        raise InvalidInput(
            f"Invalid '{name}': '{value[:40]}'. Supported: {', '.join(values)}.", param=name, code="invalid_value"
        )
    return value


def _first_tag(header: str | None) -> str | None:
    return None if header is None else header.split(",")[0].strip().removeprefix("W/")


__all__ = [
    "cancel_job",
    "create_job",
    "delete_job",
    "get_errors",
    "get_job",
    "get_results",
    "list_jobs",
    "pause_job",
    "resume_job",
    "retry_job",
]
