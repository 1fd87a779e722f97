"""The body of POST /v1/embeddings, parsed; a large one in the work threads."""

from __future__ import annotations

from functools import partial

from fastapi import Request

from api.http import json_body
from api.http.auth import caller_of, runtime_of
from api.openai.client_fields import INPUT_TYPE_WORDS
from api.openai.embedding_call import CallWarning, EmbeddingCall, UnreadInputs
from api.openai.field_translation import OWN_FIELDS, decode_request
from engine.embedding.request_body import EmbeddingRequest
from engine.runtime import Runtime
from models.embedding import Options
from models.errors import InvalidInput, UnsupportedParameter
from providers.caller_options import GATEWAY

Decoded = tuple[EmbeddingRequest, tuple[CallWarning, ...]]


async def parse(request: Request, raw: bytes, *, model: str | None = None) -> EmbeddingCall:
    """The call of a body in OpenAI's format. Raises InvalidInput or UnsupportedParameter that names the field.

    `model`: that of the path, which stands in for the body's.
    """
    runtime = runtime_of(request)
    warn = runtime.settings.unknown_parameters == "warn"
    span: json_body.Span | None = None
    if len(raw) <= json_body.INLINE_BYTES:
        body, warnings = _decode(raw, model, warn)
    else:
        (body, warnings), span = await _decode_large(runtime, caller_of(request).project, raw, model, warn)
    if len(raw) > json_body.MAX_OPTIONS_BYTES:
        json_body.check_options(body.providerOptions, "providerOptions")
    if warnings:
        _refuse_if_strict(body, warnings[0])
    options = Options(
        dimensions=body.dimensions,
        input_type=body.input_type and INPUT_TYPE_WORDS.get(body.input_type, body.input_type),
        truncate=body.truncate or "none",
        user=body.user,
        provider_options=body.providerOptions or {},
    )
    return EmbeddingCall(
        body.model,
        body.input,
        options,
        base64=body.encoding_format == "base64",
        warnings=warnings,
        body_bytes=len(raw),
        unread=None if span is None else UnreadInputs(raw, span),
    )


async def _decode_large(
    runtime: Runtime, project: str, raw: bytes, model: str | None, warn: bool
) -> tuple[Decoded, json_body.Span | None]:
    """The body; of a very large one without its inputs, and where these lie."""
    if json_body.is_cheap(raw):
        return await runtime.work.run(project, lambda: _decode(raw, model, warn)), None
    read = partial(decode_request, model=model, warn=warn)
    return await runtime.work.run(project, lambda: json_body.split_members(read, OWN_FIELDS, raw))


def _decode(raw: bytes, model: str | None, warn: bool) -> Decoded:
    try:
        return decode_request(raw, model, warn)
    except InvalidInput as error:
        raise json_body.locate_invalid_input(raw, error) if error.code == "invalid_json" else error from None


def _refuse_if_strict(body: EmbeddingRequest, warning: CallWarning) -> None:
    """Raises UnsupportedParameter for a field that was left out, where the caller wants no such answers."""
    section = (body.providerOptions or {}).get(GATEWAY)
    if section and section.get("strict") is True:
        raise UnsupportedParameter(
            f"Invalid '{warning.feature}': {warning.details}. Leave it out, or send without 'strict'.",
            param=warning.feature,
            code="unsupported_parameter",
        )
