"""The body of POST /v1/embeddings, parsed; a large one in the work threads."""

from __future__ import annotations

import msgspec
from fastapi import Request

from api.http import json_body
from api.http.auth import caller_of, runtime_of
from api.http.schemas import EmbeddingRequest, decode
from api.openai.embedding_call import EmbeddingCall, UnreadInputs
from engine.runtime import Runtime
from models.embedding import Options
from models.errors import InvalidInput

_REQUEST = msgspec.json.Decoder(EmbeddingRequest)


async def parse(request: Request, raw: bytes) -> EmbeddingCall:
    """The call of a body in OpenAI's format. Raises InvalidInput or UnsupportedParameter that names the field."""
    body, span = await _parse(runtime_of(request), caller_of(request).project, raw)
    if len(raw) > json_body.MAX_OPTIONS_BYTES:
        json_body.check_options(body.providerOptions, "providerOptions")
    options = Options(
        dimensions=body.dimensions,
        input_type=body.input_type,
        truncate=body.truncate or "none",
        user=body.user,
        provider_options=body.providerOptions or {},
    )
    return EmbeddingCall(
        body.model,
        body.input,
        options,
        base64=body.encoding_format == "base64",
        body_bytes=len(raw),
        unread=None if span is None else UnreadInputs(raw, span),
    )


async def _parse(runtime: Runtime, project: str, raw: bytes) -> tuple[EmbeddingRequest, json_body.Span | None]:
    """The body; of a large one without its inputs, and where these lie."""
    if len(raw) <= json_body.INLINE_BYTES:
        return _decode(raw), None
    if json_body.is_cheap(raw):
        return await runtime.work.run(project, lambda: _decode(raw)), None
    return await runtime.work.run(project, lambda: json_body.split_input(_REQUEST, raw))


def _decode(raw: bytes) -> EmbeddingRequest:
    try:
        return decode(_REQUEST, raw)
    except InvalidInput as error:
        raise json_body.locate_invalid_input(raw, error) if error.code == "invalid_json" else error from None
