"""GET /v1/embeddings/jobs/{job_id}/results and /errors: the outcomes of a job as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response

from api.http import params
from api.http.auth import budgets_of, caller_of, runtime_of
from api.http.compression import VARY, chosen_coding, compressed_stream, must_compress
from api.http.concurrency_limits import BudgetedStream
from engine.jobs.reading import job_rows, read_leases, results, variants
from engine.jobs.reading.results import IndexRange
from models.errors import InvalidInput

NDJSON = "application/x-ndjson"
Body = AsyncIterator[bytes | memoryview] | AsyncIterator[bytes]


async def get_results(request: Request) -> Response:
    """The vectors of an index range as ndjson or npy, while the job runs too."""
    params.reject_unknown_params(request, "format", "encoding_format", "start", "stop")
    return await _stream(request, _start_results)


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
    return await _stream(request, _start_errors)


async def _start_errors(request: Request) -> tuple[Body, str, dict[str, str]]:
    runtime = runtime_of(request)
    job = await job_rows.get_job(runtime.store, caller_of(request).project, request.path_params["job_id"])
    await read_leases.acquire_read_lease(runtime.database, job)
    body = read_leases.renew_while_reading(
        runtime.database, job.id, results.errors_ndjson(runtime.database, runtime.work, job)
    )
    return body, NDJSON, {}


async def _stream(
    request: Request, start: Callable[[Request], Awaitable[tuple[Body, str, dict[str, str]]]]
) -> Response:
    """The body that `start` opens, as a stream. Raises RateLimited or Overloaded before anything is read."""
    streams, key_id = budgets_of(request).streams, caller_of(request).key_id
    streams.acquire(key_id)
    with ExitStack() as undo:  # until the response takes its place in the budget over
        undo.callback(streams.release, key_id)
        body, media_type, headers = await start(request)
        is_compressible = media_type == NDJSON and request.query_params.get("encoding_format") != "base64"
        if is_compressible or must_compress(request):
            headers |= VARY
            if coding := chosen_coding(request):
                headers.pop("content-length", None)
                body, headers = compressed_stream(coding, body), headers | {"content-encoding": coding}
        response = BudgetedStream(streams, key_id, body, media_type=media_type, headers=headers)
        undo.pop_all()
    return response
