"""Text Embeddings Inference, as huggingface_hub 2.4 calls it: a server of one model, and the URL names it."""

from __future__ import annotations

import importlib.metadata
from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from fastapi import Request
from starlette.responses import Response

from api.dialects.body import itself, read_body, read_items, read_texts
from api.dialects.dialect import DialectRoute, array, left_out, meaning_of, reply, width
from api.http.auth import runtime_of
from api.http.errors import ErrorFacts
from api.openai.embedding_call import EmbeddingCall, EmbeddingOutcome
from api.openai.embeddings import answer
from api.openai.embeddings_response import encode_rows
from models.embedding import Alias, Options
from models.errors import InvalidInput

ERROR_TYPES: dict[int, str] = {
    HTTPStatus.TOO_MANY_REQUESTS: "Overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE: "Unhealthy",
    HTTPStatus.NOT_FOUND: "NotFound",
    HTTPStatus.UNAUTHORIZED: "Unauthorized",
}


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    inputs: msgspec.Raw
    model: str | None = None
    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None
    parameters: dict[str, Any] | None = None
    options: dict[str, Any] | None = None


_BODY = msgspec.json.Decoder(_Body)
_TEXTS_OR_TOKENS = msgspec.json.Decoder(list[str | int | list[int]])


class TeiRoute(DialectRoute):
    """A route of TEI's clients."""

    @staticmethod
    def error_body(facts: ErrorFacts) -> dict[str, Any]:
        """An error with its type."""
        kind = "Backend" if facts.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "Validation"
        return {"error": facts.message, "error_type": ERROR_TYPES.get(facts.status, kind)}


async def create_tei_embeddings(request: Request) -> Response:
    """POST /embed, with the model in the query or the body."""
    return await answer(request, _parse, _render)


async def create_tei_model_embeddings(request: Request) -> Response:
    """POST /tei/{model}/embed."""
    return await answer(request, _parse, _render)


async def create_tei_model_root_embeddings(request: Request) -> Response:
    """POST /tei/{model}, which huggingface_hub calls: it has the server's URL as its model."""
    return await answer(request, _parse, _render)


async def get_tei_info(request: Request) -> Response:
    """GET /info."""
    return _info(request, _alias(request, None))


async def get_tei_model_info(request: Request) -> Response:
    """GET /tei/{model}/info."""
    return _info(request, _alias(request, None))


def _alias(request: Request, name: str | None) -> Alias:
    """The model of the path, the query or the body. Raises UnknownAlias, InvalidInput."""
    runtime = runtime_of(request)
    name = request.path_params.get("model") or request.query_params.get("model") or name
    if name:
        return runtime.alias(name)
    raise InvalidInput(
        "The model is missing. Send its name in the URL: /tei/<model>/embed, or /embed?model=<model>.",
        param="model",
        code="missing_required_parameter",
    )


async def _parse(request: Request, raw: bytes) -> EmbeddingCall:
    body, warnings = await read_body(request, raw, _BODY)
    alias = _alias(request, body.model)
    if body.parameters:
        raise InvalidInput(
            "Invalid 'parameters': send them beside 'inputs'.", param="parameters", code="unknown_parameter"
        )
    if body.normalize is not None:
        meaning_of("normalize", body.normalize)
    if body.truncation_direction is not None:
        meaning_of("truncation_direction", body.truncation_direction)
    if body.encoding_format not in (None, "float"):
        raise InvalidInput(
            "Invalid 'encoding_format': this call has floats only. Send base64 to POST /v1/embeddings.",
            param="encoding_format",
            code="invalid_value",
        )
    inputs: str | list[Any]
    if bytes(memoryview(body.inputs)[:1]) == b'"':
        inputs = await read_texts(request, body.inputs, "inputs")
    else:
        inputs = await read_items(request, body.inputs, "inputs", _TEXTS_OR_TOKENS, itself)
    options = Options(
        dimensions=width(body.dimensions, "dimensions"),
        input_type=None if body.prompt_name is None else meaning_of("prompt_name", body.prompt_name),
        truncate="none" if body.truncate is False else "end",
    )
    warnings += left_out("options", body.options or None)
    return EmbeddingCall(alias.name, inputs, options, warnings=warnings, input_field="inputs", body_bytes=len(raw))


async def _render(request: Request, outcome: EmbeddingOutcome) -> Response:
    response = reply(outcome, array(await encode_rows(request, outcome, base64=False)))
    response.headers["x-compute-tokens"] = str(outcome.tokens)
    if cut := outcome.truncated:  # a bare array has no room for it
        response.headers["x-embedmill-truncated"] = str(len(cut))
    return response


def _info(request: Request, alias: Alias) -> Response:
    settings = runtime_of(request).settings
    info = {
        "model_id": alias.name,
        "model_sha": None,
        "model_dtype": "float32",
        "served_model_name": alias.name,
        "model_type": {"embedding": {"pooling": "unknown"}},
        "max_concurrent_requests": settings.max_inputs_per_request,
        "max_input_length": alias.max_input_tokens,
        "max_batch_tokens": alias.max_input_tokens * settings.max_inputs_per_request,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_inputs_per_request,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": importlib.metadata.version("embedmill"),
    }
    return Response(orjson.dumps(info), media_type="application/json")
