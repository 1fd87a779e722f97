"""The gateway client of Vercel's AI SDK (@ai-sdk/gateway 3 and 4): its embedding model and its list of models."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from fastapi import Request
from starlette.responses import Response

from api.dialects.body import read_body, read_texts
from api.dialects.dialect import DialectRoute, all_warnings, array, reply, width
from api.http import json_body
from api.http.auth import runtime_of
from api.http.errors import ErrorFacts
from api.http.request_headers import header
from api.openai.embedding_call import CallWarning, EmbeddingCall, EmbeddingOutcome
from api.openai.embeddings import answer
from api.openai.embeddings_response import encode_rows, gateway_metadata
from models.base import usd_text
from models.embedding import Options
from models.errors import InvalidInput, UnknownAlias

MODEL_HEADER = "ai-model-id"
VERSIONS = ("v3", "v4")
# The client makes a class of its own of each of these; of any other it makes an internal error.
ERROR_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
}


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    values: msgspec.Raw
    dimensions: int | None = None
    providerOptions: dict[str, dict[str, Any]] | None = None  # noqa: N815  # the wire's spelling


_BODY = msgspec.json.Decoder(_Body)


class VercelRoute(DialectRoute):
    """A route of the gateway client."""

    @staticmethod
    def error_body(facts: ErrorFacts) -> dict[str, Any]:
        """An error with the type that the client knows."""
        kind = ERROR_TYPES.get(facts.status, "invalid_request_error")
        if facts.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = "internal_server_error"
        elif facts.code == UnknownAlias.code:
            kind = "model_not_found"
        return {"error": {"message": facts.message, "type": kind, "param": facts.param, "code": facts.code}}


async def create_vercel_embeddings_v3(request: Request) -> Response:
    """POST /v3/ai/embedding-model."""
    return await answer(request, _parse, _render)


async def create_vercel_embeddings_v4(request: Request) -> Response:
    """POST /v4/ai/embedding-model."""
    return await answer(request, _parse, _render)


async def list_vercel_models_v3(request: Request) -> Response:
    """GET /v3/ai/config."""
    return _models(request, "v3")


async def list_vercel_models_v4(request: Request) -> Response:
    """GET /v4/ai/config."""
    return _models(request, "v4")


async def _parse(request: Request, raw: bytes) -> EmbeddingCall:
    model = header(request, MODEL_HEADER.encode())
    if not model:
        raise InvalidInput(
            f"The header {MODEL_HEADER} is missing: send the name of the model in it.",
            param=MODEL_HEADER,
            code="missing_required_parameter",
        )
    body, warnings = await read_body(request, raw, _BODY)
    json_body.check_options(body.providerOptions, "providerOptions")
    values = await read_texts(request, body.values, "values")
    options = Options(dimensions=width(body.dimensions, "dimensions"), provider_options=body.providerOptions or {})
    return EmbeddingCall(model, values, options, warnings=warnings, input_field="values", body_bytes=len(raw))


async def _render(request: Request, outcome: EmbeddingOutcome) -> Response:
    rows = await encode_rows(request, outcome, base64=False)
    metadata = gateway_metadata(outcome)
    has_deprecated = "/v3/" not in request.scope["path"]
    tail = orjson.dumps(
        {
            "usage": {"tokens": outcome.tokens},
            "providerMetadata": {"gateway": metadata},
            "warnings": [_warning(each, has_deprecated) for each in all_warnings(outcome)],
        }
    )
    return reply(outcome, [b'{"embeddings":', *array(rows), b",", tail[1:]])


def _warning(warning: CallWarning, has_deprecated: bool) -> dict[str, str]:
    """A warning in the client's schema: what it does not know there would fail the whole reply."""
    if warning.type in ("unsupported", "compatibility"):
        return warning._asdict()
    if warning.type == "deprecated" and has_deprecated:
        return {"type": "deprecated", "setting": warning.feature, "message": warning.details}
    return {"type": "other", "message": f"{warning.feature}: {warning.details}"}


def _models(request: Request, version: str) -> Response:
    aliases = runtime_of(request).aliases
    models = [
        {
            "id": name,
            "name": name,
            "description": f"{alias.width} dimensions, up to {alias.max_input_tokens} tokens a text",
            "pricing": {"input": usd_text(alias.usd_per_million_tokens / 1_000_000), "output": "0"},
            "specification": {
                "specificationVersion": version,
                "provider": alias.routes[0].provider,
                "modelId": name,
            },
            "modelType": "embedding",
        }
        for name, alias in sorted(aliases.items())
    ]
    return Response(orjson.dumps({"models": models}), media_type="application/json")
