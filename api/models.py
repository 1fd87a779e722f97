"""/v1/models: what may be asked for, in OpenAI's list shape with what else a caller should know."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from api.guard import runtime_of
from models.base import usd_text
from models.embedding import Alias


async def list_models(request: Request) -> Response:
    aliases = runtime_of(request).aliases
    return _json({"object": "list", "data": [_model(aliases[name]) for name in sorted(aliases)]})


async def get_model(request: Request) -> Response:
    return _json(_model(runtime_of(request).alias(request.path_params["model"])))


def _model(alias: Alias) -> dict[str, Any]:
    allowed = alias.allowed_dimensions
    return {
        "id": alias.name,
        "object": "model",
        "created": 0,
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
