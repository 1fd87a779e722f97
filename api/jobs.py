"""/v1/embeddings/jobs: submit a corpus, poll it, read its results, end it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import orjson
from fastapi import Request
from sqlalchemy import Row
from starlette.responses import Response, StreamingResponse

from api import bodies
from api.guard import caller_of, runtime_of
from api.schemas import JobQuery, JobRequest, ResumeRequest, decode, explain
from engine import planning, results
from engine.corpus import PARSERS, ByteMeter, Gunzip, LineReader, Lines, TextLine, Whole, add_value
from engine.jobs import budget, control, ending, read, retry, submit
from engine.jobs.estimate import Estimate
from engine.jobs.submit import Intake, Replay, Wanted
from engine.results import Range
from engine.runtime import Runtime
from models.embedding import Options
from models.errors import IdempotencyMismatch, InvalidInput, UnsupportedMediaType
from models.job import FINISHED

_REQUEST = msgspec.json.Decoder(JobRequest)
_RESUME = msgspec.json.Decoder(ResumeRequest)
POLL_AGAIN_S = 1
MOST_METADATA = 16
WAIT_CEILING_S = 60
MOST_OPTIONS_BYTES = 4096


async def create_job(request: Request) -> Response:
    runtime = runtime_of(request)
    kind = bodies.media_type(request)
    if kind != "application/json" and kind not in PARSERS:
        known = ", ".join(["application/json", *PARSERS])
        raise UnsupportedMediaType(
            f"Content-Type '{kind[:80]}' is not supported. Supported: {known}.", param="content-type"
        )
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 255:
        raise InvalidInput("The Idempotency-Key must have 1 to 255 characters.", param="idempotency-key")
    if kind == "application/json":
        return await _from_json(request, runtime, key)
    return await _from_stream(request, runtime, key, kind)


async def _from_json(request: Request, runtime: Runtime, key: str | None) -> Response:
    bodies.only(request)
    body = await bodies.read(request, runtime.settings.max_body_bytes)
    asked = decode(_REQUEST, body)
    wanted = _wanted(request, runtime, asked, asked.metadata or {}, asked.providerOptions or {})
    lines = _lines_of(asked.input)
    if asked.dry_run:
        estimate = Estimate(runtime, wanted)
        await estimate.add(lines)
        return _json(await estimate.finish())
    fingerprint = hashlib.sha256(b"application/json\0" + body).digest()
    job_id = await _reserve(request, runtime, key)
    if isinstance(job_id, Replay):
        return await _replay(request, runtime, job_id, fingerprint)
    async with submit.receiving(runtime, caller_of(request), wanted, job_id, key) as intake:
        await intake.add(lines)
        await intake.finish(fingerprint)
    return await _accepted(request, runtime, intake)


async def _from_stream(request: Request, runtime: Runtime, key: str | None, kind: str) -> Response:
    asked = _query(request)
    wanted = _wanted(request, runtime, asked, _metadata_of(asked.metadata), {})
    decoder = bodies.decoding(request)
    if asked.dry_run:
        estimate = Estimate(runtime, wanted)
        await _feed(request, runtime, kind, decoder, estimate, hashlib.sha256())
        return _json(await estimate.finish())
    hasher = hashlib.sha256(f"{kind}\0{request.url.query}\0".encode())
    job_id = await _reserve(request, runtime, key)
    if isinstance(job_id, Replay):
        async for chunk in bodies.pieces(request):
            hasher.update(chunk)
        return await _replay(request, runtime, job_id, hasher.digest())
    async with submit.receiving(runtime, caller_of(request), wanted, job_id, key) as intake:
        await _feed(request, runtime, kind, decoder, intake, hasher)
        await intake.finish(hasher.digest())
    return await _accepted(request, runtime, intake)


async def _feed(
    request: Request,
    runtime: Runtime,
    kind: str,
    decoder: Gunzip | Whole,
    taker: Intake | Estimate,
    hasher: hashlib._Hash,
) -> None:
    """Give the lines of a streamed body on, as they arrive."""
    reader = LineReader(PARSERS[kind], max_line_bytes=runtime.settings.max_line_bytes)
    meter = ByteMeter(runtime.settings.max_corpus_bytes)
    async for chunk in bodies.pieces(request):
        hasher.update(chunk)
        for piece in decoder.feed(chunk):
            meter.take(len(piece))
            await taker.add(reader.feed(piece))
    decoder.finish()
    await taker.add(reader.finish())


async def _reserve(request: Request, runtime: Runtime, key: str | None) -> str | Replay | None:
    return None if key is None else await submit.reserve(runtime, caller_of(request).project, key)


async def _replay(request: Request, runtime: Runtime, replay: Replay, fingerprint: bytes) -> Response:
    if replay.fingerprint != fingerprint:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used before with another body: use a new key for a new job.",
            param="idempotency-key",
        )
    row = await read.find(runtime, caller_of(request).project, replay.job_id)
    return _job_response(row, 200, {"idempotent-replayed": "true", "location": _path(row.id)})


async def _accepted(request: Request, runtime: Runtime, intake: Intake) -> Response:
    row = await read.find(runtime, caller_of(request).project, intake.job_id)
    return _job_response(row, 202, {"location": _path(row.id)})


def _wanted(
    request: Request,
    runtime: Runtime,
    asked: JobRequest | JobQuery,
    metadata: dict[str, str],
    provider_options: dict[str, dict[str, Any]],
) -> Wanted:
    if len(metadata) > MOST_METADATA or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
        raise InvalidInput(
            "Invalid 'metadata': at most 16 pairs, keys up to 64 and values up to 512 characters.",
            param="metadata",
            code="invalid_value",
        )
    options = Options(
        dimensions=asked.dimensions,
        input_type=asked.input_type,
        truncate=asked.truncate or "none",
        user=asked.user,
        provider_options=provider_options,
    )
    alias = runtime.narrowed(runtime.alias(asked.model), options)
    return Wanted(
        alias=alias,
        width=planning.wanted_width(alias, asked.dimensions),
        options=options,
        labels=metadata,
        request_id=request.scope["request_id"],
        max_cost_usd=None if asked.max_cost_usd is None else budget.ceiling(asked.max_cost_usd),
    )


def _lines_of(given: str | list[str | int | list[int] | TextLine]) -> Lines:
    lines = Lines()
    if isinstance(given, str):
        lines.add(given)
    elif not given:
        raise InvalidInput("Invalid 'input': the list is empty.", param="input", code="empty_array")
    elif all(isinstance(item, int) for item in given):
        lines.add([item for item in given if isinstance(item, int)])  # a flat array of numbers is one input
    else:
        for index, item in enumerate(given):
            if isinstance(item, int):
                raise InvalidInput(
                    f"Invalid 'input[{index}]': expected a string, an array of token ids or an object with a text.",
                    param=f"input[{index}]",
                    code="invalid_type",
                )
            add_value(item, lines)
    return lines


def _query(request: Request) -> JobQuery:
    try:
        return msgspec.convert(dict(request.query_params), JobQuery, strict=False)
    except msgspec.ValidationError as error:
        raise explain(error) from error


def _metadata_of(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidInput(
            "Invalid 'metadata': expected a JSON object of strings.", param="metadata", code="invalid_value"
        ) from error


async def list_jobs(request: Request) -> Response:
    bodies.only(request, "limit", "after", "status")
    limit = bodies.integer(request, "limit", default=20, low=1, high=100) or 20
    status = request.query_params.get("status")
    if status is not None and status not in read.STATUSES:
        raise InvalidInput(
            f"Invalid 'status': supported are {', '.join(read.STATUSES)}.", param="status", code="invalid_value"
        )
    rows, more = await read.page(
        runtime_of(request),
        caller_of(request).project,
        limit=limit,
        after=request.query_params.get("after"),
        status=status,
    )
    data = [read.job_object(row) for row in rows]
    return _json(
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
        row = await read.wait_for_change(
            runtime, project, job_id, wait_s=wait_s, seen_etag=_first_tag(seen), gone=request.is_disconnected
        )
    else:
        row = await read.find(runtime, project, job_id)
    tag = read.etag(row)
    if seen is not None and (seen.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in seen.split(","))):
        return Response(status_code=304, headers=_poll_headers(row, tag))
    return _job_response(row, 200, {})


async def get_results(request: Request) -> Response:
    bodies.only(request, "format", "encoding_format", "start", "stop")
    runtime = runtime_of(request)
    job = await read.find(runtime, caller_of(request).project, request.path_params["job_id"])
    shape = _one_of(request, "format", ("ndjson", "npy"))
    encoding = _one_of(request, "encoding_format", ("float", "base64"))
    start = bodies.integer(request, "start")
    stop = bodies.integer(request, "stop")
    if start is not None and stop is not None and stop < start:
        raise InvalidInput("Invalid 'stop': must not be less than start.", param="stop", code="invalid_value")
    wanted = Range.of(job, start, stop)
    complete = await results.is_complete(runtime, job, wanted, stop)
    headers = {"x-embedmill-complete": "true" if complete else "false", "cache-control": "no-store"}
    body: AsyncIterator[bytes | memoryview] | AsyncIterator[bytes]
    if shape == "npy":
        headers["content-length"] = str(results.npy_bytes(job, wanted))
        body, media = results.npy(runtime, job, wanted), "application/octet-stream"
    else:
        body, media = results.ndjson(runtime, job, wanted, encoding), "application/x-ndjson"
    headers["content-disposition"] = f'attachment; filename="{job.id}.{shape}"'
    return StreamingResponse(body, media_type=media, headers=headers)


async def get_errors(request: Request) -> Response:
    bodies.only(request)
    runtime = runtime_of(request)
    job = await read.find(runtime, caller_of(request).project, request.path_params["job_id"])
    return StreamingResponse(results.errors_ndjson(runtime, job), media_type="application/x-ndjson")


async def cancel_job(request: Request) -> Response:
    return await _steered(request, ending.cancel)


async def pause_job(request: Request) -> Response:
    return await _steered(request, control.pause)


async def resume_job(request: Request) -> Response:
    bodies.only(request)
    body = await bodies.read(request, MOST_OPTIONS_BYTES)
    asked = decode(_RESUME, body) if body.strip() else ResumeRequest()
    ceiling = None if asked.max_cost_usd is None else budget.ceiling(asked.max_cost_usd)
    return await _steered(request, partial(control.resume, max_cost_usd=ceiling))


async def retry_job(request: Request) -> Response:
    return await _steered(request, retry.retry)


async def _steered(request: Request, verb: Callable[[Runtime, str, str], Awaitable[None]]) -> Response:
    """Do something about the job, and answer with what it is then."""
    bodies.only(request)
    runtime, project, job_id = runtime_of(request), caller_of(request).project, request.path_params["job_id"]
    await verb(runtime, project, job_id)
    return _job_response(await read.find(runtime, project, job_id), 200, {})


async def delete_job(request: Request) -> Response:
    job_id = request.path_params["job_id"]
    await ending.remove(runtime_of(request), caller_of(request).project, job_id)
    return _json({"id": job_id, "object": "embedding.job", "deleted": True})


def _one_of(request: Request, name: str, values: tuple[str, ...]) -> str:
    value = request.query_params.get(name, values[0])
    if value not in values:
        raise InvalidInput(
            f"Invalid '{name}': '{value[:40]}'. Supported: {', '.join(values)}.", param=name, code="invalid_value"
        )
    return value


def _first_tag(header: str | None) -> str | None:
    return None if header is None else header.split(",")[0].strip().removeprefix("W/")


def _job_response(row: Row[Any], status: int, headers: dict[str, str]) -> Response:
    return _json(read.job_object(row), status, _poll_headers(row, read.etag(row)) | headers)


def _poll_headers(row: Row[Any], tag: str) -> dict[str, str]:
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if row.status not in FINISHED:
        headers["retry-after"] = str(POLL_AGAIN_S)
    return headers


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")


def _path(job_id: str) -> str:
    return f"/v1/embeddings/jobs/{job_id}"
