"""GET /v1/embeddings/jobs/{job_id}/results and /errors: the outcomes of a job as a stream."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response

from api.http import params
from api.http.auth import caller_of, runtime_of
from api.http.result_stream import NDJSON, Body, stream_response
from engine.jobs.reading import job_rows, read_leases, results, variants
from engine.jobs.reading.results import IndexRange
from models.errors import InvalidInput


async def get_results(request: Request) -> Response:
    """The vectors of an index range as ndjson or npy, while the job runs too."""
    params.reject_unknown_params(request, "format", "encoding_format", "start", "stop")
    return await stream_response(request, _start_results)


async def _start_results(request: Request) -> tuple[Body, str, dict[str, str]]:
    runtime = runtime_of(request)
    job = await job_rows.get_job(runtime.store, caller_of(request).project, request.path_params["job_id"])
    format_ = params.choice_param(request, "format", ("ndjson", "npy"))
    encoding = params.choice_param(request, "encoding_format", ("float", "base64"))
    start = params.int_param(request, "start")
    stop = params.int_param(request, "stop")
    if start is not None and stop is not None and stop < start:
        raise InvalidInput("Invalid 'stop': must not be less than start.", param="stop", code="invalid_value")
    await read_leases.acquire_read_lease(runtime.database, job)
    width = await variants.vector_width(runtime.database, job)
    stored = await variants.stored_prefix(runtime.database, job)
    index_range = IndexRange.of(job, start, stop, stored=stored)
    complete = await results.is_complete(runtime.database, job, index_range, stop)
    headers = {"x-embedmill-complete": "true" if complete else "false", "cache-control": "no-store"}
    if job.input_type:
        headers["x-embedmill-input-type"] = quote(job.input_type)
    body: Body
    if format_ == "npy":
        headers["content-length"] = str(results.npy_bytes(job, index_range, width=width))
        body, media_type = (
            results.npy(runtime.database, job, index_range, complete=complete, width=width),
            "application/octet-stream",
        )
    else:
        body = results.ndjson(runtime.database, runtime.work, job, index_range, encoding, complete=complete)
        media_type = NDJSON
    headers["content-disposition"] = f'attachment; filename="{job.id}.{format_}"'
    return read_leases.renew_while_reading(runtime.database, job.id, body), media_type, headers


async def get_errors(request: Request) -> Response:
    """The inputs without a vector, one JSON object a line."""
    params.reject_unknown_params(request)
    return await stream_response(request, _start_errors)


async def _start_errors(request: Request) -> tuple[Body, str, dict[str, str]]:
    runtime = runtime_of(request)
    job = await job_rows.get_job(runtime.store, caller_of(request).project, request.path_params["job_id"])
    await read_leases.acquire_read_lease(runtime.database, job)
    body = read_leases.renew_while_reading(
        runtime.database, job.id, results.errors_ndjson(runtime.database, runtime.work, job)
    )
    return body, NDJSON, {}
