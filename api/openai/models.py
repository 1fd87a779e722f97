"""/v1/models: the available models in OpenAI's list format, with further fields."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from api.http.auth import runtime_of
from engine.runtime import Runtime
from models.base import usd_text
from models.embedding import Alias


async def list_models(request: Request) -> Response:
    """The models that callers may name."""
    runtime = runtime_of(request)
    models = [_model(runtime, runtime.aliases[name]) for name in sorted(runtime.aliases)]
    return _json({"object": "list", "data": models})


async def get_model(request: Request) -> Response:
    """One model."""
    runtime = runtime_of(request)
    return _json(_model(runtime, runtime.alias(request.path_params["model"])))


def _model(runtime: Runtime, alias: Alias) -> dict[str, Any]:
    allowed = alias.allowed_dimensions
    return {
        "id": alias.name,
        "object": "model",
        "created": runtime.configured_at,
        "owned_by": alias.routes[0].provider,
        "type": "embedding",
        "dimensions": alias.width,
        "allowed_dimensions": (
            {"min": allowed.start, "max": allowed.stop - 1} if isinstance(allowed, range) else sorted(allowed)
        ),
        "max_input_tokens": alias.max_input_tokens,
        "pricing": {"input": usd_text(alias.usd_per_million_tokens / 1_000_000)},
        "space": alias.space,
        "providers": [route.provider for route in alias.routes],
    }


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
