"""POST /v1/embeddings/jobs: a corpus in any form becomes a job, or an estimate of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response

from api import bodies, large_bodies, media_types
from api.guard import caller_of, runtime_of
from api.job_replies import job_path, job_response, json_response
from api.schemas import JobQuery, JobRequest, decode, explain
from engine.corpus import json_spans
from engine.corpus.json_items import read_items, read_numbers
from engine.corpus.lines import (
    LINE_PARSERS,
    ByteLimit,
    GzipDecoder,
    IdentityDecoder,
    LineReader,
    ParsedRecords,
    TextLine,
    append_record,
)
from engine.jobs.ingest import job_intake
from engine.jobs.ingest.differences import what_differs
from engine.jobs.ingest.dry_run import Estimate
from engine.jobs.ingest.job_intake import JobIntake, JobSpec, Replay, Reservation
from engine.jobs.reading import job_rows
from engine.jobs.recording import budget
from engine.planning import packing
from engine.runtime import Runtime
from models.embedding import Options
from models.errors import Conflict, IdempotencyMismatch, InvalidInput, JobNotFound, UnsupportedMediaType
from providers.caller_options import checked_options

_REQUEST = msgspec.json.Decoder(JobRequest)
MOST_METADATA = 16
# Lines of two bytes make a lot of work of a few bytes.
STEP_BYTES = 64 * 1024


async def create_job(request: Request) -> Response:
    runtime = runtime_of(request)
    kind = media_types.media_type(request)
    if kind != media_types.JSON and kind not in LINE_PARSERS:
        raise media_types.unsupported(kind, [media_types.JSON, *LINE_PARSERS])
    media_types.check_is_given(request)
    charset = media_types.charset(request)
    if charset.startswith(("utf-16", "utf-32", "ucs-")):
        raise UnsupportedMediaType(f"The charset '{charset[:40]}' is not supported: send UTF-8.", param="content-type")
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 255:
        raise InvalidInput("The Idempotency-Key must have 1 to 255 characters.", param="idempotency-key")
    if kind == "application/json":
        return await _from_json(request, runtime, key)
    return await _from_stream(request, runtime, key, kind)


async def _from_json(request: Request, runtime: Runtime, key: str | None) -> Response:
    bodies.only(request)
    project = caller_of(request).project
    with bodies.lease_of(request) as lease:
        body = await bodies.read_under_lease(request, runtime.settings.max_body_bytes, lease)
        asked, span = await _job_request(runtime, project, body)
        wanted = _wanted(request, runtime, asked, asked.metadata or {}, asked.providerOptions or {})
        pieces = _lines_of(asked.input) if span is None else _lines_in(runtime, wanted, body, span)
        if asked.dry_run:
            estimate = Estimate(runtime, wanted, project)
            await estimate.read(pieces, size=len(body))
            return json_response(await estimate.finish())
        fingerprint = await _hash(runtime, project, body)
        reserved = await _reserve(request, runtime, key)
        if isinstance(reserved, Replay):
            return await _replay(request, runtime, reserved, fingerprint, wanted)
        async with job_intake.receiving(runtime, caller_of(request), wanted, reserved) as intake:
            await intake.read(pieces, size=len(body))
            await runtime.keys.recheck(caller_of(request))
            await intake.finish(fingerprint)
    return await _accepted(request, runtime, intake)


async def _job_request(runtime: Runtime, project: str, body: bytes) -> tuple[JobRequest, large_bodies.Span | None]:
    """The request; of a large body, or one with an input that is not JSON, where its inputs lie."""
    if not large_bodies.is_cheap(body):
        return await runtime.work.run(project, lambda: large_bodies.split(_REQUEST, body))
    try:
        asked = decode(_REQUEST, body)
    except InvalidInput as error:
        if error.code != "invalid_json":
            raise
        try:  # one input of many that is no JSON must not spoil the others
            asked, span = large_bodies.split(_REQUEST, body)
        except InvalidInput:
            raise error from None
        if span is None or span.kind != b"[":
            raise large_bodies.name_the_guilty(body, error) from None
        return asked, span
    if len(body) > large_bodies.MAX_OPTIONS_BYTES:
        large_bodies.check_options(asked.providerOptions, "providerOptions")
        large_bodies.check_options(asked.metadata, "metadata")
    return asked, None


async def _hash(runtime: Runtime, project: str, body: bytes) -> bytes:
    def digest() -> bytes:
        return hashlib.sha256(b"application/json\0" + body).digest()

    return digest() if len(body) <= large_bodies.CHEAP_BYTES else await runtime.work.run(project, digest)


async def _from_stream(request: Request, runtime: Runtime, key: str | None, kind: str) -> Response:
    asked = _query(request)
    wanted = _wanted(request, runtime, asked, _metadata_of(asked.metadata), {})
    decoder = bodies.decoding(request)
    if asked.dry_run:
        estimate = Estimate(runtime, wanted, caller_of(request).project)
        await _feed(request, runtime, kind, decoder, estimate, hashlib.sha256())
        return json_response(await estimate.finish())
    hasher = hashlib.sha256(b"%b\0%b\0" % (kind.encode(), request.scope["query_string"]))
    reserved = await _reserve(request, runtime, key)
    if isinstance(reserved, Replay):
        async for chunk in bodies.pieces(request):
            hasher.update(chunk)
        return await _replay(request, runtime, reserved, hasher.digest(), wanted)
    async with job_intake.receiving(runtime, caller_of(request), wanted, reserved) as intake:
        await _feed(request, runtime, kind, decoder, intake, hasher)
        await runtime.keys.recheck(caller_of(request))
        await intake.finish(hasher.digest())
    return await _accepted(request, runtime, intake)


async def _feed(
    request: Request,
    runtime: Runtime,
    kind: str,
    decoder: GzipDecoder | IdentityDecoder,
    taker: JobIntake | Estimate,
    hasher: hashlib._Hash,
) -> None:
    """Give the lines of a streamed body on, as they arrive: unpacked and parsed step by step in the work threads."""
    reader = LineReader(LINE_PARSERS[kind], max_line_bytes=runtime.settings.max_line_bytes)
    meter = ByteLimit(runtime.settings.max_job_bytes)

    def lines_of(chunk: bytes) -> Iterator[ParsedRecords]:
        for piece in decoder.feed(chunk):
            meter.take(len(piece))
            for low in range(0, len(piece), STEP_BYTES):
                yield reader.feed(piece[low : low + STEP_BYTES])

    async for chunk in bodies.pieces(request):
        hasher.update(chunk)
        # A few packed bytes may be many.
        size = len(chunk) if isinstance(decoder, IdentityDecoder) else None
        await taker.read(lines_of(chunk), size=size, held_bytes=reader.held_bytes)
    decoder.finish()
    await taker.read(iter([reader.finish()]), size=reader.held_bytes)


async def _reserve(request: Request, runtime: Runtime, key: str | None) -> Reservation | Replay | None:
    return None if key is None else await job_intake.reserve(runtime, caller_of(request).project, key)


async def _replay(request: Request, runtime: Runtime, replay: Replay, fingerprint: bytes, wanted: JobSpec) -> Response:
    if replay.fingerprint != fingerprint:
        differs = await what_differs(runtime, replay.job_id, wanted)
        raise IdempotencyMismatch(
            f"This Idempotency-Key was used before with another request{differs and f': {differs}'}. "
            "Send the same request again, or use a new key for a new job.",
            param="idempotency-key",
        )
    try:
        row = await job_rows.find(runtime, caller_of(request).project, replay.job_id)
    except JobNotFound as error:  # deleted since the key was looked up, and the key with it
        raise Conflict(
            "The job of this Idempotency-Key was deleted just now: send the request again.", should_retry=True
        ) from error
    return job_response(row, 200, {"idempotent-replayed": "true", "location": job_path(row.id)})


async def _accepted(request: Request, runtime: Runtime, intake: JobIntake) -> Response:
    row = await job_rows.find(runtime, caller_of(request).project, intake.job_id)
    return job_response(row, 202, {"location": job_path(row.id)})


def _wanted(
    request: Request,
    runtime: Runtime,
    asked: JobRequest | JobQuery,
    metadata: dict[str, str],
    provider_options: dict[str, dict[str, Any]],
) -> JobSpec:
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
    alias = runtime.apply_gateway_options(runtime.alias(asked.model), options)
    options = checked_options(options, alias)
    return JobSpec(
        alias=alias,
        width=packing.resolve_dimensions(alias, options.dimensions),
        options=options,
        labels=metadata,
        request_id=request.scope["request_id"],
        max_cost_usd=None if asked.max_cost_usd is None else budget.ceiling(asked.max_cost_usd),
    )


def _lines_of(given: str | list[str | int | list[int] | TextLine]) -> Iterator[ParsedRecords]:
    lines = ParsedRecords()
    if isinstance(given, str):
        lines.add(given)
    elif not given:
        raise InvalidInput(
            "Invalid 'input': the list is empty. Send at least one input.", param="input", code="empty_array"
        )
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
            append_record(item, lines)
    return iter([lines])


def _lines_in(runtime: Runtime, wanted: JobSpec, body: bytes, span: large_bodies.Span) -> Iterator[ParsedRecords]:
    """The same of a body that is not decoded whole."""
    opening = body.index(span.kind, span.start) + 1
    first = json_spans.first_byte(body, opening, span.stop)
    if span.kind == b'"' or (first and first in b"-0123456789"):
        lines = ParsedRecords()
        limit = wanted.alias.max_input_tokens
        try:
            lines.add(
                msgspec.json.decode(body[span.start : span.stop], type=str)
                if span.kind == b'"'
                else read_numbers(body, span.start, span.stop, limit=limit)
            )
        except (ValueError, RecursionError):
            raise InvalidInput(
                "Invalid 'input': expected a string or an array of token ids.", param="input", code="invalid_type"
            ) from None
        return iter([lines])
    if first in (b"", b"]"):
        raise InvalidInput(
            "Invalid 'input': the list is empty. Send at least one input.", param="input", code="empty_array"
        )
    return read_items(body, span.start, span.stop, max_item_bytes=runtime.settings.max_line_bytes)


def _query(request: Request) -> JobQuery:
    try:
        return msgspec.convert(dict(request.query_params), JobQuery, strict=False)
    except msgspec.ValidationError as error:
        if "model" not in request.query_params:
            message = media_types.missing_model(media_types.media_type(request))
            raise InvalidInput(message, param="model", code="missing_required_parameter") from error
        raise explain(error, JobQuery) from error


def _metadata_of(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidInput(
            "Invalid 'metadata': expected a JSON object of strings.", param="metadata", code="invalid_value"
        ) from error
