"""GET /v1/embeddings/jobs/{job_id}/results and /errors: the outcomes of a job as a stream."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import Request
from sqlalchemy import Row
from starlette.responses import Response

from api.http import params
from api.http.auth import caller_of, runtime_of
from api.http.byte_range import ByteRange, requested_range
from api.http.compression import must_compress
from api.http.result_stream import NDJSON, PARQUET, Body, ResultStream, stream_response
from engine.jobs.reading import job_rows, read_leases, results, tables, variants
from engine.jobs.reading.results import IndexRange
from engine.runtime import Runtime
from models.errors import InvalidInput
from models.job import FINISHED

FORMATS = ("ndjson", "npy", "parquet", "arrow")
NPY = "application/octet-stream"
TABLE_TYPES = {"parquet": PARQUET, "arrow": "application/vnd.apache.arrow.file"}


async def get_results(request: Request) -> Response:
    """The vectors of an index range as ndjson, npy, Parquet or Arrow, while the job runs too."""
    params.reject_unknown_params(request, "format", "encoding_format", "start", "stop")
    return await stream_response(request, _start_results)


async def _start_results(request: Request) -> ResultStream:
    runtime = runtime_of(request)
    job = await job_rows.get_job(runtime.store, caller_of(request).project, request.path_params["job_id"])
    format_ = params.choice_param(request, "format", FORMATS)
    encoding = params.choice_param(request, "encoding_format", ("float", "base64"))
    start = params.int_param(request, "start")
    stop = params.int_param(request, "stop")
    if start is not None and stop is not None and stop < start:
        raise InvalidInput("Invalid 'stop': must not be less than start.", param="stop", code="invalid_value")
    width = await variants.vector_width(runtime.database, job)
    writer = tables.open_table(format_, width) if format_ in TABLE_TYPES else None
    await read_leases.acquire_read_lease(runtime.database, job)
    stored = await variants.stored_prefix(runtime.database, job)
    index_range = IndexRange.of(job, start, stop, stored=stored)
    complete = await results.is_complete(runtime.database, job, index_range, stop)
    headers = {
        "x-embedmill-complete": "true" if complete else "false",
        "cache-control": "no-store",
        "content-disposition": f'attachment; filename="{job.id}.{format_}"',
    }
    if job.input_type:
        headers["x-embedmill-input-type"] = quote(job.input_type)
    if format_ == "npy":
        stream = _npy(request, runtime, job, index_range, complete=complete, width=width)
    elif writer is not None:
        body = tables.table(runtime.database, runtime.work, job, index_range, writer, complete=complete, width=width)
        stream = ResultStream(body, TABLE_TYPES[format_], {})
    else:
        lines = results.ndjson(runtime.database, runtime.work, job, index_range, encoding, complete=complete)
        stream = ResultStream(lines, NDJSON, {})
    body = read_leases.renew_while_reading(runtime.database, job.id, stream.body)
    return stream._replace(body=body, headers=headers | stream.headers)


def _npy(
    request: Request, runtime: Runtime, job: Row[Any], indexes: IndexRange, *, complete: bool, width: int
) -> ResultStream:
    """The whole, or of a finished job the bytes that Range names. Raises RangeNotSatisfiable."""
    size = results.npy_bytes(job, indexes, width=width)
    headers = {"content-length": str(size)}
    byte_range = None
    if job.status in FINISHED:
        # The version of a job changes with each of its outcomes; the indexes that are stored do not after its end.
        tag = f'"{job.id}-{job.version}-{indexes.start}-{indexes.stop}"'
        headers |= {"etag": tag, "accept-ranges": "bytes"}
        if not must_compress(request):
            byte_range = _range_of(request, tag, size)
    body: Body
    if byte_range is None:
        body = results.npy(runtime.database, job, indexes, complete=complete, width=width)
        return ResultStream(body, NPY, headers)
    first, end = byte_range.start, byte_range.stop
    body = results.npy_part(runtime.database, job, indexes, start=first, stop=end, complete=complete, width=width)
    headers |= {"content-length": str(end - first), "content-range": byte_range.content_range}
    return ResultStream(body, NPY, headers, status_code=206)


def _range_of(request: Request, tag: str, size: int) -> ByteRange | None:
    """The range that the caller wants, unless it has a part of other results (If-Range). Raises RangeNotSatisfiable."""
    text = request.headers.get("range")
    if text is None or request.headers.get("if-range", tag).strip() != tag:
        return None
    return requested_range(text, size)


async def get_errors(request: Request) -> Response:
    """The inputs without a vector, one JSON object a line."""
    params.reject_unknown_params(request)
    return await stream_response(request, _start_errors)


async def _start_errors(request: Request) -> ResultStream:
    runtime = runtime_of(request)
    job = await job_rows.get_job(runtime.store, caller_of(request).project, request.path_params["job_id"])
    await read_leases.acquire_read_lease(runtime.database, job)
    body = read_leases.renew_while_reading(
        runtime.database, job.id, results.errors_ndjson(runtime.database, runtime.work, job)
    )
    return ResultStream(body, NDJSON, {})
