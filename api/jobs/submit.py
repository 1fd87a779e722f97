"""POST /v1/embeddings/jobs: a corpus in any form becomes a job, or an estimate of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response

from api.http import json_body, media_types, params, request_body
from api.http.auth import caller_of, runtime_of
from api.http.json_response import json_response
from api.http.schemas import JobQuery, JobRequest
from api.jobs import submit_file
from api.jobs.job_webhook import check_webhook, created_webhook, parse_query
from api.jobs.render import job_path, job_response
from engine.corpus import json_spans
from engine.corpus.double_keys import double_key
from engine.corpus.formats import STREAM_FORMATS, CorpusOptions, parser_of
from engine.corpus.json_items import read_items, read_numbers
from engine.corpus.lines import ByteLimit, IdentityDecoder, ParsedRecords, append_record
from engine.corpus.parser import STEP_BYTES, CorpusParser, Decoder
from engine.embedding.body_errors import decode, double_key_error, explain
from engine.jobs.composition import dry_run_of, intake_parts_of
from engine.jobs.ingest import job_intake
from engine.jobs.ingest.dry_run import DryRun
from engine.jobs.ingest.idempotency_mismatch import describe_differences
from engine.jobs.ingest.job_intake import IdempotentReplay, JobIntake, JobSpec, Reservation
from engine.jobs.reading import job_rows
from engine.jobs.recording import cost_limit
from engine.planning import packing
from engine.routing.model_choice import choose_model
from engine.runtime import Runtime
from engine.webhooks.endpoints import WebhookSpec
from models.embedding import Options
from models.errors import Conflict, IdempotencyMismatch, InvalidInput, JobNotFound

_REQUEST = msgspec.json.Decoder(JobRequest)
MAX_METADATA_PAIRS = 16


async def create_job(request: Request) -> Response:
    """Create a job from a JSON body or a streamed corpus, or estimate it with `dry_run`."""
    runtime = runtime_of(request)
    media_type = media_types.media_type(request)
    if media_type != media_types.JSON and media_type not in STREAM_FORMATS:
        raise media_types.unsupported(media_type, [media_types.JSON, *STREAM_FORMATS])
    media_types.require_content_type(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 255:
        raise InvalidInput("The Idempotency-Key must have 1 to 255 characters.", param="idempotency-key")
    if media_type == "application/json":
        return await _from_json(request, runtime, key)
    return await _from_stream(request, runtime, key, media_type)


async def _from_json(request: Request, runtime: Runtime, key: str | None) -> Response:
    params.reject_unknown_params(request)
    project = caller_of(request).project
    with request_body.body_lease(request) as lease:
        body = await request_body.read_body_under_lease(request, runtime.settings.max_body_bytes, lease)
        options, span = await _job_request(runtime, project, body)
        webhook = await check_webhook(request, options.webhook)
        spec = _job_spec(request, runtime, options, options.metadata or {}, options.providerOptions or {}, webhook)
        if options.input_file_id is not None:
            return await _from_file(request, runtime, key, options, spec, body)
        records = _records_of(options) if span is None else _records_within(runtime, spec, body, span)
        if options.dry_run:
            estimate = await dry_run_of(runtime, spec, project)
            await estimate.read(records, size=len(body))
            return json_response(await estimate.finish())
        fingerprint = await _hash(runtime, project, body)
        reserved = await _reserve(request, runtime, key)
        if isinstance(reserved, IdempotentReplay):
            return await _replay(request, runtime, reserved, fingerprint, spec)
        async with job_intake.open_intake(intake_parts_of(runtime), caller_of(request), spec, reserved) as intake:
            await intake.read(records, size=len(body))
            await runtime.keys.recheck(caller_of(request))
            await intake.finish(fingerprint)
    return await _accepted(request, runtime, intake.job_id, spec)


async def _from_file(
    request: Request, runtime: Runtime, key: str | None, fields: JobRequest, spec: JobSpec, body: bytes
) -> Response:
    corpus = await submit_file.checked_file(request, fields)
    if fields.dry_run:
        return json_response(await submit_file.estimate_file(request, spec, corpus))
    fingerprint = await _hash(runtime, caller_of(request).project, body)
    reserved = await _reserve(request, runtime, key)
    if isinstance(reserved, IdempotentReplay):
        return await _replay(request, runtime, reserved, fingerprint, spec)
    reservation = reserved or job_intake.new_reservation()
    job_id = await submit_file.submit_file(request, spec, fields, reservation, fingerprint)
    return await _accepted(request, runtime, job_id, spec)


async def _job_request(runtime: Runtime, project: str, body: bytes) -> tuple[JobRequest, json_body.Span | None]:
    """The request; for a large body, or one with an input that is not JSON, also the span of its inputs."""
    if not json_body.is_cheap(body):
        return await runtime.work.run(project, lambda: json_body.split_input(_REQUEST, body))
    try:
        options = decode(_REQUEST, body)
    except InvalidInput as error:
        if error.code != "invalid_json":
            raise
        try:  # one input of many that is no JSON must not spoil the others
            options, span = json_body.split_input(_REQUEST, body)
        except InvalidInput:
            raise error from None
        if span is None or span.kind != b"[":
            raise json_body.locate_invalid_input(body, error) from None
        return options, span
    if len(body) > json_body.MAX_OPTIONS_BYTES:
        json_body.check_options(options.providerOptions, "providerOptions")
        json_body.check_options(options.metadata, "metadata")
    return options, None


async def _hash(runtime: Runtime, project: str, body: bytes) -> bytes:
    def digest() -> bytes:
        return hashlib.sha256(b"application/json\0" + body).digest()

    return digest() if len(body) <= json_body.CHEAP_BYTES else await runtime.work.run(project, digest)


async def _from_stream(request: Request, runtime: Runtime, key: str | None, media_type: str) -> Response:
    options = _query(request)
    webhook = await check_webhook(request, parse_query(options.webhook))
    spec = _job_spec(request, runtime, options, _metadata_of(options.metadata), {}, webhook)
    decoder = request_body.body_decoder(request)
    parser = parser_of(STREAM_FORMATS[media_type], _corpus_options(runtime, options))
    if options.dry_run:
        estimate = await dry_run_of(runtime, spec, caller_of(request).project)
        await _feed(request, runtime, parser, decoder, estimate, hashlib.sha256())
        return json_response(await estimate.finish())
    hasher = hashlib.sha256(b"%b\0%b\0" % (media_type.encode(), request.scope["query_string"]))
    reserved = await _reserve(request, runtime, key)
    if isinstance(reserved, IdempotentReplay):
        async for chunk in request_body.raw_chunks(request):
            hasher.update(chunk)
        return await _replay(request, runtime, reserved, hasher.digest(), spec)
    async with job_intake.open_intake(intake_parts_of(runtime), caller_of(request), spec, reserved) as intake:
        await _feed(request, runtime, parser, decoder, intake, hasher)
        await runtime.keys.recheck(caller_of(request))
        await intake.finish(hasher.digest())
    return await _accepted(request, runtime, intake.job_id, spec)


async def _feed(
    request: Request,
    runtime: Runtime,
    parser: CorpusParser,
    decoder: Decoder,
    sink: JobIntake | DryRun,
    hasher: hashlib._Hash,
) -> None:
    """Pass the records of a streamed body to `sink` as they arrive, decoded and parsed in the work threads."""
    meter = ByteLimit(runtime.settings.max_job_bytes)

    def lines_of(chunk: bytes) -> Iterator[ParsedRecords]:
        for piece in decoder.feed(chunk):
            meter.take(len(piece))
            for low in range(0, len(piece), STEP_BYTES):
                request_body.check_client(request)
                yield from parser.feed(piece[low : low + STEP_BYTES])

    async for chunk in request_body.raw_chunks(request):
        hasher.update(chunk)
        # The decompressed size is not known yet.
        size = len(chunk) if isinstance(decoder, IdentityDecoder) else None
        await sink.read(lines_of(chunk), size=size, buffered_bytes=parser.held_bytes)
    decoder.finish()
    await sink.read(parser.finish(), size=parser.bytes_at_end)


async def _reserve(request: Request, runtime: Runtime, key: str | None) -> Reservation | IdempotentReplay | None:
    return None if key is None else await job_intake.reserve(runtime.store, caller_of(request).project, key)


async def _replay(
    request: Request, runtime: Runtime, replay: IdempotentReplay, fingerprint: bytes, spec: JobSpec
) -> Response:
    if replay.fingerprint != fingerprint:
        difference = await describe_differences(runtime.database, replay.job_id, spec)
        raise IdempotencyMismatch(
            f"This Idempotency-Key was used before with another request{difference and f': {difference}'}. "
            "Send the same request again, or use a new key for a new job.",
            param="idempotency-key",
        )
    try:
        row = await job_rows.get_job(runtime.store, caller_of(request).project, replay.job_id)
    except JobNotFound as error:  # deleted since the key was looked up, and the key with it
        raise Conflict(
            "The job of this Idempotency-Key was deleted just now: send the request again.", should_retry=True
        ) from error
    headers = {"idempotent-replayed": "true", "location": job_path(row.id)}
    return job_response(row, 200, headers, more=await created_webhook(request, row.id, spec.webhook))


async def _accepted(request: Request, runtime: Runtime, job_id: str, spec: JobSpec) -> Response:
    row = await job_rows.get_job(runtime.store, caller_of(request).project, job_id)
    more = await created_webhook(request, row.id, spec.webhook)
    return job_response(row, 202, {"location": job_path(row.id)}, more=more)


def _job_spec(
    request: Request,
    runtime: Runtime,
    fields: JobRequest | JobQuery,
    metadata: dict[str, str],
    provider_options: dict[str, dict[str, Any]],
    webhook: WebhookSpec | None,
) -> JobSpec:
    if len(metadata) > MAX_METADATA_PAIRS or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
        raise InvalidInput(
            "Invalid 'metadata': at most 16 pairs, keys up to 64 and values up to 512 characters.",
            param="metadata",
            code="invalid_value",
        )
    options = Options(
        dimensions=fields.dimensions,
        input_type=fields.input_type,
        truncate=fields.truncate or "none",
        user=fields.user,
        provider_options=provider_options,
    )
    alias, options = choose_model(runtime.aliases, runtime.alias(fields.model), options)
    return JobSpec(
        alias=alias,
        width=packing.resolve_dimensions(alias, options.dimensions),
        options=options,
        metadata=metadata,
        request_id=request.scope["request_id"],
        webhook=webhook,
        max_cost_usd=None if fields.max_cost_usd is None else cost_limit.parse_max_cost(fields.max_cost_usd),
    )


def _corpus_options(runtime: Runtime, query: JobQuery) -> CorpusOptions:
    settings = runtime.settings
    return CorpusOptions(
        query.text_column,
        query.id_column,
        max_line_bytes=settings.max_line_bytes,
        max_bytes=settings.max_file_bytes,
        max_ratio=settings.max_compression_ratio,
        folder=settings.data_dir,
    )


def _records_of(fields: JobRequest) -> Iterator[ParsedRecords]:
    lines, value = ParsedRecords(), fields.input
    for name in ("text_column", "id_column"):
        if getattr(fields, name) is not None:
            raise InvalidInput(
                f"Invalid '{name}': the inputs of a JSON body have no columns. Send it with an input_file_id, or "
                "leave it out.",
                param=name,
                code="invalid_value",
            )
    if value is None:
        raise InvalidInput(
            "Missing required parameter: 'input', or in its place 'input_file_id'.",
            param="input",
            code="missing_required_parameter",
        )
    if isinstance(value, str):
        lines.add(value)
    elif not value:
        raise InvalidInput(
            "Invalid 'input': the list is empty. Send at least one input.", param="input", code="empty_array"
        )
    elif all(isinstance(item, int) for item in value):
        lines.add([item for item in value if isinstance(item, int)])  # a flat array of numbers is one input
    else:
        for index, item in enumerate(value):
            if isinstance(item, int):
                raise InvalidInput(
                    f"Invalid 'input[{index}]': expected a string, an array of token ids or an object with a text.",
                    param=f"input[{index}]",
                    code="invalid_type",
                )
            append_record(item, lines)
    return iter([lines])


def _records_within(runtime: Runtime, spec: JobSpec, body: bytes, span: json_body.Span) -> Iterator[ParsedRecords]:
    """The records of a body that is not decoded whole."""
    opening = body.index(span.kind, span.start) + 1
    first = json_spans.first_byte(body, opening, span.stop)
    if span.kind == b'"' or (first and first in b"-0123456789"):
        lines = ParsedRecords()
        limit = spec.alias.max_input_tokens
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
    names = [name for name, _ in request.query_params.multi_items()]
    if len(set(names)) < len(names):
        raise double_key_error(next(name for name in names if names.count(name) > 1))
    try:
        return msgspec.convert(dict(request.query_params), JobQuery, strict=False)
    except msgspec.ValidationError as error:
        if "model" not in request.query_params:
            message = media_types.missing_model_message(media_types.media_type(request))
            raise InvalidInput(message, param="model", code="missing_required_parameter") from error
        raise explain(error, JobQuery) from error


def _metadata_of(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    if (key := double_key(text)) is not None:
        raise double_key_error(f"metadata.{key}")
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidInput(
            "Invalid 'metadata': expected a JSON object of strings.", param="metadata", code="invalid_value"
        ) from error
